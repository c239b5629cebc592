/* What kernels of the wgmma family call, for clang's OpenCL C on a CPU. */
void emu_bar_init(uint address, uint count);
void emu_bar_arrive(uint address, int bytes);
void emu_bar_wait(uint address, uint parity);
void emu_sub_group(void);
void emu_bulk(uint to, const __global void* from, uint bytes, uint barrier);
void emu_tile(uint to, const __global ulong* map, const int* place, uint barrier);
void emu_products(float* sums, int n, int k, int kind, int depth_major, ulong a, const uint* registers, ulong b, int add);
float emu_half(ushort bits);
ushort emu_half_bits(float value);
uint emu_stages(uint base);

#define max(a, b) ((a) > (b) ? (a) : (b))
#define isnan(a) ((a) != (a))
#define isfinite(a) ((a) - (a) == 0)
#define vload_half(i, p) emu_half(((const __global ushort*)(p))[i])
#define vstore_half(v, i, p) (((__global ushort*)(p))[i] = emu_half_bits(v))
static inline float4 emu_load4(const __global half* p) {
    return (float4)(vload_half(0, p), vload_half(1, p), vload_half(2, p), vload_half(3, p));
}
static inline float8 emu_load8(const __global half* p) { return (float8)(emu_load4(p), emu_load4(p + 4)); }
static inline void emu_store4(float4 v, __global half* p) {
    for (int i = 0; i < 4; ++i) vstore_half(v[i], i, p);
}
static inline void emu_store8(float8 v, __global half* p) {
    for (int i = 0; i < 8; ++i) vstore_half(v[i], i, p);
}
#define vload_half4(i, p) emu_load4((p) + 4 * (i))
#define vloada_half4(i, p) emu_load4((p) + 4 * (i))
#define vload_half8(i, p) emu_load8((p) + 8 * (i))
#define vloada_half8(i, p) emu_load8((p) + 8 * (i))
#define vstore_half4(v, i, p) emu_store4(v, (p) + 4 * (i))
#define vstorea_half4(v, i, p) emu_store4(v, (p) + 4 * (i))
#define vstore_half8(v, i, p) emu_store8(v, (p) + 8 * (i))
#define vstorea_half8(v, i, p) emu_store8(v, (p) + 8 * (i))
#define convert_uint4(v) ((uint4)((v).x, (v).y, (v).z, (v).w))
#define convert_uint8(v) ((uint8)((v).s0, (v).s1, (v).s2, (v).s3, (v).s4, (v).s5, (v).s6, (v).s7))
#define convert_ushort(v) ((ushort)(v))
#define convert_ushort4(v) ((ushort4)((v).x, (v).y, (v).z, (v).w))
#define convert_ushort8(v) ((ushort8)((v).s0, (v).s1, (v).s2, (v).s3, (v).s4, (v).s5, (v).s6, (v).s7))

#define TW_COPY16(to, from, ok)                                                   \
    do {                                                                          \
        uint* tw_to = (uint*)(size_t)(to);                                        \
        for (int tw_i = 0; tw_i < 4; ++tw_i)                                      \
            tw_to[tw_i] = (ok) ? ((const __global uint*)(from))[tw_i] : 0;        \
    } while (0)
#define TW_COMMIT()
#define TW_WAIT(n)
#define TW_BAR_INIT(b, n) emu_bar_init(b, n)
#define TW_BAR_VISIBLE()
#define TW_BAR_ARRIVE(b) emu_bar_arrive(b, 0)
#define TW_BAR_EXPECT(b, n) emu_bar_arrive(b, n)
#define TW_BAR_WAIT(b, parity) emu_bar_wait(b, parity)
#define TW_BULK(to, from, n, b) emu_bulk(to, from, n, b)
#define TW_TILE(to, map, b, ...)              \
    do {                                      \
        int tw_place[] = {__VA_ARGS__};       \
        emu_tile(to, map, tw_place, b);       \
    } while (0)
#define TW_TILE2(to, map, c0, c1, b) TW_TILE(to, map, b, c0, c1)
#define TW_TILE3(to, map, c0, c1, c2, b) TW_TILE(to, map, b, c0, c1, c2)
#define TW_TILE4(to, map, c0, c1, c2, c3, b) TW_TILE(to, map, b, c0, c1, c2, c3)
#define TW_TILE5(to, map, c0, c1, c2, c3, c4, b) TW_TILE(to, map, b, c0, c1, c2, c3, c4)
#define TW_MAP_RELEASE()
#define TW_MAP_ACQUIRE(p)
#define TW_FENCE_ASYNC()
#define TW_WG_FENCE()
#define TW_WG_COMMIT()
/* work-items of a sub-group go on together after it, as in hardware */
#define TW_WG_WAIT(n) emu_sub_group()
#define TW_WARP_SYNC() emu_sub_group()
#define TW_LOCAL_WORD(to, address) (to) = *(const uint*)(size_t)(address)
#define TW_LOCAL_PIECE(to, a, b, c, d) *(uint4*)(size_t)(to) = (uint4)(a, b, c, d)
/* the stages begin at the first multiple of 1024 in `room` */
#define TW_DESCRIPTOR(start, far, near)                                  \
    (((ulong)((near) >> 4) << 32) | ((ulong)((far) >> 4) << 16) |        \
     (((start) - emu_stages(((uint)(size_t)room + 1023) & ~1023u)) >> 4))
