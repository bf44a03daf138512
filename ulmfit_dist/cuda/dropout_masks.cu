// All dropout masks of a step in one launch: Philox4x64-10 (Salmon et al., 2011), threshold, scale and dtype conversion.
//
// `table` has one row per mask, with the columns of models/masks.py. A thread computes one Philox counter: 256 random bits,
// which determine 16 elements of a mask. Dtypes differ between masks, so a kept element is passed as its bit pattern.

typedef unsigned long long u64;

enum Column { END, KEY_0, KEY_1, FIRST, STRIDE, BLOCKS_PER_ROW, THRESHOLD, KEPT, BYTES, OFFSET, NUM_COLUMNS };

extern "C" __global__ void dropout_masks(const u64* table, u64* out, int num_blocks) {
    u64 block = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (block >= (u64)num_blocks) return;
    const u64* mask = table;
    u64 begin = 0;
    for (; block >= mask[END]; mask += NUM_COLUMNS) begin = mask[END];
    block -= begin;

    u64 row = block / mask[BLOCKS_PER_ROW];
    u64 c0 = mask[FIRST] + row * mask[STRIDE] + (block - row * mask[BLOCKS_PER_ROW]), c1 = 0, c2 = 0, c3 = 0;
    u64 k0 = mask[KEY_0], k1 = mask[KEY_1];
    for (int round = 0; round < 10; round++) {
        u64 high0 = __umul64hi(c0, 0xD2E7470EE14C6C93ULL), low0 = c0 * 0xD2E7470EE14C6C93ULL;
        u64 high1 = __umul64hi(c2, 0xCA5A826395121157ULL), low1 = c2 * 0xCA5A826395121157ULL;
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9E3779B97F4A7C15ULL;
        k1 += 0xBB67AE8584CAA73BULL;
    }

    u64 words[4] = {c0, c1, c2, c3};
    int threshold = (int)(long long)mask[THRESHOLD], bits = 8 * (int)mask[BYTES];
    u64* target = out + mask[OFFSET] + block * 2 * mask[BYTES];
    u64 packed = 0;
    int filled = 0;
    for (int i = 0; i < 16; i++) {
        short number = (short)(words[i >> 2] >> (16 * (i & 3)));
        if (number >= threshold) packed |= mask[KEPT] << filled;
        filled += bits;
        if (filled == 64) {
            *target++ = packed;
            packed = 0;
            filled = 0;
        }
    }
}
