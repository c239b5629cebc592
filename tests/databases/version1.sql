BEGIN TRANSACTION;
CREATE TABLE configurations (
	id INTEGER NOT NULL, 
	family VARCHAR(128) NOT NULL, 
	parameters TEXT NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (family, parameters)
);
INSERT INTO "configurations" VALUES(1,'contract','{"tile": 4}');
INSERT INTO "configurations" VALUES(2,'contract','{"tile": 8}');
INSERT INTO "configurations" VALUES(3,'contract','{"tile": 16}');
INSERT INTO "configurations" VALUES(4,'contract','{"tile": 2}');
CREATE TABLE devices (
	id INTEGER NOT NULL, 
	identity TEXT NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (identity)
);
INSERT INTO "devices" VALUES(1,'test-cpu avx512 2 cores');
CREATE TABLE drivers (
	id INTEGER NOT NULL, 
	device_id INTEGER NOT NULL, 
	version TEXT NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (device_id, version), 
	FOREIGN KEY(device_id) REFERENCES devices (id)
);
INSERT INTO "drivers" VALUES(1,1,'1.0');
INSERT INTO "drivers" VALUES(2,1,'0.9');
CREATE TABLE measurements (
	id INTEGER NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	program_id INTEGER NOT NULL, 
	driver_id INTEGER NOT NULL, 
	generator VARCHAR(64) NOT NULL, 
	configuration_id INTEGER NOT NULL, 
	status VARCHAR(32) NOT NULL, 
	seconds FLOAT, 
	samples TEXT NOT NULL, 
	error FLOAT, 
	message TEXT NOT NULL, 
	build_seconds FLOAT, 
	host TEXT NOT NULL, 
	created VARCHAR(40) NOT NULL, 
	run VARCHAR(64) NOT NULL, 
	round VARCHAR(64) NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (digest), 
	FOREIGN KEY(program_id) REFERENCES programs (id), 
	FOREIGN KEY(driver_id) REFERENCES drivers (id), 
	FOREIGN KEY(configuration_id) REFERENCES configurations (id)
);
INSERT INTO "measurements" VALUES(1,'575ec1dbc22b3cf003ccb39d4f84c8bc3287b05712dc1da120aed5e30c03f1ba',1,1,'1',1,'ok',0.002,'[0.002, 0.30000000000000004]',1.0e-07,'',0.25,'host','2026-01-01T00:00:01.000000+00:00','run1','');
INSERT INTO "measurements" VALUES(2,'2d3edad17a2a899abcdd1c567c1da63648c11681107dc1b34d19972ec3ed5c97',1,1,'1',2,'ok',0.001,'[0.001]',NULL,'',NULL,'host','2026-01-01T00:00:02.000000+00:00','run1','r');
INSERT INTO "measurements" VALUES(3,'205d9b9605a667161082d49419c996845bd135a01636c7b6872e773e235fb30d',1,1,'1',3,'crashed',NULL,'[]',NULL,'a "quoted"
line; with a semicolon',NULL,'host','2026-01-01T00:00:03.000000+00:00','','');
INSERT INTO "measurements" VALUES(4,'280e88ef8830aa3e50808b5c3809c1fc3f0873bc2e11aec806bd578fdaccca93',2,2,'1',4,'ok',5.0e-06,'[5e-06]',NULL,'',NULL,'host','2026-01-01T00:00:04.000000+00:00','','');
CREATE TABLE meta (
	"key" VARCHAR(64) NOT NULL, 
	value TEXT NOT NULL, 
	PRIMARY KEY ("key")
);
INSERT INTO "meta" VALUES('schema_version','1');
CREATE TABLE programs (
	id INTEGER NOT NULL, 
	signature VARCHAR(128) NOT NULL, 
	structure VARCHAR(128) NOT NULL, 
	sizes TEXT NOT NULL, 
	text TEXT NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (signature)
);
INSERT INTO "programs" VALUES(1,'aaaa','s','[64, 64, 64]','op program(t0[64]: f32) -> t1[64]: f32:
    precision tf32
    t1[i0:64] = t0[i0]
');
INSERT INTO "programs" VALUES(2,'bbbb','s','[1]','op program(t0[1]: f16) -> t1[1]: f16:
    t1[i0:1] = t0[i0]
');
CREATE TABLE runs (
	id VARCHAR(64) NOT NULL, 
	started VARCHAR(40) NOT NULL, 
	host TEXT NOT NULL, 
	budget TEXT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "runs" VALUES('run1','2026-01-01T00:00:00.000000+00:00','host','30 s');
CREATE INDEX ix_programs_structure ON programs (structure);
CREATE INDEX measurements_by_round ON measurements (program_id, driver_id, generator, round, created);
CREATE INDEX measurements_by_key ON measurements (program_id, driver_id, generator, configuration_id, created);
COMMIT;
