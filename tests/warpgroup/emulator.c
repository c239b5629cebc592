/* Runs an OpenCL kernel that uses warpgroup instructions on a CPU: a thread per work-item, work-groups one after the
 * other. Local memory lies below 4 GiB (no PIE), so that 32-bit addresses stand for themselves.
 *
 *     emulator ITEMS GROUPS_X GROUPS_Y GROUPS_Z (FILE BYTES)...       each file is a buffer, read and written back
 *
 * It checks what the hardware leaves undefined: alignment of copies, and arrivals at barriers beyond their count. */
#include <immintrin.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_ITEMS = 1024, LANES = 32 };
enum { FP16, BF16, TF32 };

void run_kernel(void** arguments);
static unsigned base; /* of the stages; descriptors count from it */
unsigned emu_stages(unsigned address) { return base = address; }

static _Thread_local size_t item, group[3];
static size_t groups[3];
static int items;
static void** buffers;
static pthread_barrier_t everybody, sub_groups[MOST_ITEMS / LANES];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

static void fail(const char* what) {
    fprintf(stderr, "%s\n", what);
    exit(1);
}

/* OpenCL's functions, by their mangled names */
size_t local_id(unsigned d) __asm__("_Z12get_local_idj");
size_t local_id(unsigned d) { return d ? 0 : item; }
size_t group_id(unsigned d) __asm__("_Z12get_group_idj");
size_t group_id(unsigned d) { return group[d]; }
size_t global_id(unsigned d) __asm__("_Z13get_global_idj");
size_t global_id(unsigned d) { return d ? group[d] : group[0] * items + item; }
void barrier_(unsigned flags) __asm__("_Z7barrierj");
void barrier_(unsigned flags) { pthread_barrier_wait(&everybody); }
int min_(int a, int b) __asm__("_Z3minii");
int min_(int a, int b) { return a < b ? a : b; }

float emu_half(uint16_t bits) { return _cvtsh_ss(bits); }
uint16_t emu_half_bits(float value) { return _cvtss_sh(value, 0); }
void emu_sub_group(void) { pthread_barrier_wait(&sub_groups[item / LANES]); }

/* barriers: arrivals to come in this phase and in every phase; bytes to come, times two, plus the phase's parity */
typedef struct {
    uint16_t pending, count;
    int32_t bytes_parity;
} Barrier;

static Barrier* barrier_at(unsigned address) { return (Barrier*)(size_t)address; }

static void finish_phase(Barrier* b) {
    if (b->pending == 0 && b->bytes_parity >> 1 == 0) {
        b->bytes_parity ^= 1;
        b->pending = b->count;
        pthread_cond_broadcast(&changed);
    }
}

void emu_bar_init(unsigned address, unsigned count) {
    Barrier* b = barrier_at(address);
    b->pending = b->count = count;
    b->bytes_parity = 0;
}

void emu_bar_arrive(unsigned address, int bytes) {
    pthread_mutex_lock(&lock);
    Barrier* b = barrier_at(address);
    if (b->pending-- == 0) fail("more arrivals than a barrier counts");
    b->bytes_parity += 2 * bytes;
    finish_phase(b);
    pthread_mutex_unlock(&lock);
}

static void bytes_came(unsigned address, int bytes) {
    pthread_mutex_lock(&lock);
    Barrier* b = barrier_at(address);
    b->bytes_parity -= 2 * bytes;
    finish_phase(b);
    pthread_mutex_unlock(&lock);
}

void emu_bar_wait(unsigned address, unsigned parity) {
    pthread_mutex_lock(&lock);
    while ((barrier_at(address)->bytes_parity & 1) == (int)parity) pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
}

/* copies */
static uint64_t swizzled(uint64_t address) { return address ^ ((address >> 7 & 7) << 4); }

void emu_bulk(unsigned to, const void* from, unsigned bytes, unsigned barrier) {
    if ((to | (uint64_t)from | bytes) & 15) fail("a bulk copy is not aligned");
    memcpy((void*)(size_t)to, from, bytes);
    bytes_came(barrier, bytes);
}

/* The map's words are those of `emulation.MAPS`: address, rank - 1 and bytes per element, sizes, strides, box. */
void emu_tile(unsigned to, const uint64_t* map, const int* place, unsigned barrier) {
    int rank = (map[1] & 7) + 1, bytes = map[1] >> 3 & 15;
    int64_t sizes[5], strides[5] = {bytes}, box[5], total = 1;
    for (int d = 0; d < rank; ++d) {
        sizes[d] = (int64_t)(map[2 + d / 2] >> (32 * (d % 2)) & 0xffffffff) + 1;
        if (d) strides[d] = (int64_t)(map[5 + (d - 1) / 2] >> (32 * ((d - 1) % 2)) & 0xffffffff) * 16;
        total *= box[d] = (map[8] >> (8 * d) & 255) + 1;
    }
    if (box[0] * bytes != 128 || to % 1024 || map[0] % 16) fail("a tile is not aligned");
    for (int64_t e = 0; e < total; ++e) {
        int64_t rest = e, offset = 0, inside = 1;
        for (int d = 0; d < rank; ++d) {
            int64_t at = rest % box[d] + place[d];
            rest /= box[d];
            inside &= at >= 0 && at < sizes[d];
            offset += at * strides[d];
        }
        void* element = (void*)swizzled(to + e * bytes);
        inside ? memcpy(element, (char*)map[0] + offset, bytes) : memset(element, 0, bytes);
    }
    bytes_came(barrier, total * bytes);
}

/* products: every work-item computes its own sums */
static float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static float element(uint64_t descriptor, int row, int depth, int kind, int depth_major) {
    uint64_t start = (descriptor & 0x3fff) << 4, far = (descriptor >> 16 & 0x3fff) << 4;
    uint64_t near = (descriptor >> 32 & 0x3fff) << 4, bytes = kind == TF32 ? 4 : 2;
    uint64_t at = depth_major ? row / 8 * near + row % 8 * 128 + depth * bytes
                              : row / 64 * far + depth / 8 * near + depth % 8 * 128 + row % 64 * bytes;
    void* place = (void*)swizzled(base + start + at);
    if (kind == TF32) return as_float(*(uint32_t*)place & 0xffffe000u);
    return kind == FP16 ? emu_half(*(uint16_t*)place) : as_float((uint32_t) * (uint16_t*)place << 16);
}

void emu_products(float* sums, int n, int k, int kind, int depth_major, uint64_t a, const uint32_t* registers, uint64_t b,
                  int add) {
    static uint32_t exchanged[MOST_ITEMS][4];
    int lane = item % LANES, quad = item & ~3;
    float rows[2][16];
    if (registers) {
        memcpy(exchanged[item], registers, 16);
        emu_sub_group();
    }
    for (int h = 0; h < 2; ++h)
        for (int depth = 0; depth < k; ++depth) {
            int row = item / LANES % 4 * 16 + lane / 4 + 8 * h;
            rows[h][depth] = registers ? as_float(exchanged[quad + depth % 4][h + depth / 4 * 2] & 0xffffe000u)
                                       : element(a, row, depth, kind, 1);
        }
    if (registers) emu_sub_group();
    for (int j = 0; j < n / 8; ++j)
        for (int v = 0; v < 2; ++v) {
            double total[2] = {0, 0};
            for (int depth = 0; depth < k; ++depth) {
                float column = element(b, 8 * j + lane % 4 * 2 + v, depth, kind, depth_major);
                for (int h = 0; h < 2; ++h) total[h] += (double)rows[h][depth] * column;
            }
            for (int h = 0; h < 2; ++h) sums[4 * j + 2 * h + v] = (add ? sums[4 * j + 2 * h + v] : 0) + total[h];
        }
}

static void* work_item(void* number) {
    item = (size_t)number;
    for (size_t z = 0; z < groups[2]; ++z)
        for (size_t y = 0; y < groups[1]; ++y)
            for (size_t x = 0; x < groups[0]; ++x) {
                group[0] = x, group[1] = y, group[2] = z;
                run_kernel(buffers);
                pthread_barrier_wait(&everybody);
            }
    return NULL;
}

int main(int count, char** words) {
    items = atoi(words[1]);
    for (int d = 0; d < 3; ++d) groups[d] = atoi(words[2 + d]);
    int files = (count - 5) / 2;
    void* memory[32];
    buffers = memory;
    for (int f = 0; f < files; ++f) {
        size_t bytes = atol(words[6 + 2 * f]);
        memory[f] = aligned_alloc(512, (bytes + 1023) / 512 * 512);
        FILE* file = fopen(words[5 + 2 * f], "rb");
        if (!file || fread(memory[f], 1, bytes, file) != bytes) fail("a buffer cannot be read");
        fclose(file);
    }
    pthread_barrier_init(&everybody, NULL, items);
    for (int s = 0; s < MOST_ITEMS / LANES; ++s) pthread_barrier_init(&sub_groups[s], NULL, LANES);
    pthread_t threads[MOST_ITEMS];
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 256 << 10);
    for (size_t i = 0; i < (size_t)items; ++i)
        if (pthread_create(&threads[i], &small, work_item, (void*)i)) fail("no more threads");
    for (int i = 0; i < items; ++i) pthread_join(threads[i], NULL);
    for (int f = 0; f < files; ++f) {
        FILE* file = fopen(words[5 + 2 * f], "wb");
        fwrite(memory[f], 1, atol(words[6 + 2 * f]), file);
        fclose(file);
    }
    return 0;
}
