"""The template of the tuning report (jinja2); no scripts, nothing is fetched."""

TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{{ page.title }}: tuning on {{ page.device }}</title>
<style>
  :root { color-scheme: light; }
  body { font: 14px/1.45 system-ui, sans-serif; color: #212f3d; margin: 0 auto; max-width: 76rem; padding: 1.5rem; }
  h1 { font-size: 1.5rem; margin: 0 0 .2rem; overflow-wrap: anywhere; }
  h2 { font-size: 1.1rem; margin: 2.2rem 0 .5rem; border-bottom: 1px solid #d5dbdb; padding-bottom: .2rem; }
  h3 { font-size: .95rem; margin: 1.8rem 0 .2rem; overflow-wrap: anywhere; }
  p.note, p.meta { color: #5d6d7e; margin: .2rem 0; }
  dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: 1rem 0; }
  dt { color: #5d6d7e; } dd { margin: 0; }
  .wide { overflow-x: auto; }
  table { border-collapse: collapse; width: 100%; font-size: .85rem; }
  th, td { text-align: left; padding: .3rem .55rem; border-bottom: 1px solid #eaeded; vertical-align: top; }
  th { position: sticky; top: 0; background: #fff; border-bottom: 2px solid #aeb6bf; white-space: nowrap; }
  td.n, th.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
  td code { overflow-wrap: anywhere; }
  code, pre { font: .8rem/1.4 ui-monospace, monospace; color: #34495e; }
  pre { background: #f4f6f6; padding: .5rem .7rem; overflow-x: auto; max-height: 12rem; }
  svg { width: 100%; height: auto; }
</style>
</head>
<body>
<h1>{{ page.title }}</h1>
<p class="meta">{{ page.device }}, driver {{ page.driver }} · {{ date }} · tilewright {{ version }}</p>
{% if limits %}<p class="meta">{{ limits }}</p>{% endif %}
<dl>{% for name, value in summary %}<dt>{{ name }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>

{% if times %}
<h2>Where the time goes</h2>
<p class="note">{{ "Time in one run of the network" if page.whole else "Time of one run of each kernel" }}, by the
table's numbers, and the least that the device's measured limits allow.</p>
{{ times | safe }}
{% endif %}

{% if roofline %}
<h2>Roofline</h2>
<p class="note">Every candidate that works. Bytes are those of each input and output once; a roof is measured for
working sets of the size that it names, so that kernels whose data stay in caches may lie above the lower one.</p>
{{ roofline | safe }}
{% endif %}

<h2>Kernels</h2>
<div class="wide"><table>
<thead><tr><th class="n">#</th><th>kernel</th><th class="n">runs</th><th class="n">time</th><th class="n">part</th>
<th class="n">of roofline</th><th>bound by</th><th class="n">gain</th><th>winner</th><th class="n">tried</th>
<th>failed</th></tr></thead>
<tbody>
{% for row in rows %}
<tr><td class="n">{{ row.number }}</td><td>{{ row.op.name }}<br><code>{{ row.header | truncate(160) }}</code></td>
<td class="n">{{ "%g" | format(row.op.weight) }}</td><td class="n">{{ row.time }}</td><td class="n">{{ row.part }}</td>
<td class="n">{{ row.share }}</td><td>{{ row.by }}</td><td class="n">{{ row.gain }}</td>
<td>{{ row.op.family or "-" }}<br><code>{{ row.op.configuration }}</code></td>
<td class="n">{{ row.op.tried | length }}</td><td>{{ row.failures }}</td></tr>
{% endfor %}
</tbody></table></div>
<p class="note">Gain: the time of what would run untuned, over that of the winner, where both were measured. More than
100% of the roofline: an algorithm with fewer operations than were counted (winograd), matrix instructions, data that
stay in a nearer cache, or limits that were measured while the device was busy.</p>

<h2>Searches</h2>
<p class="note">Left: one line per candidate over its parameters, ending at its speed relative to the fastest. Right:
the time of each candidate in the order of measuring, and the best so far.</p>
{% for number, op, picture in details %}
<h3>#{{ number }} {{ op.name }}</h3>
<details><summary>program</summary><pre>{{ op.text }}</pre></details>
{{ picture | safe }}
{% endfor %}
{% if left_out > 0 %}<p class="note">{{ left_out }} kernels that take less time are not pictured.</p>{% endif %}
</body>
</html>
"""

__all__ = ["TEMPLATE"]
