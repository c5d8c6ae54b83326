// Copies the keys and values of new rows to the paged cache.
//
// qkv: bf16 [rows, (heads + 2 kv_heads) · d], rotated; sequence, position: u32 [rows]; table and cache: common/paged.cuh. No two
// rows are of one place. d: a multiple of 8.
// Grid · block ≥ rows · kv_heads · d / 4 threads; block: any (256). A thread copies 16 bytes.
// Bytes moved: 8 · rows · kv_heads · d. Floor on an H100 (3.0 TB/s), 256 rows, 2 kv heads of 128: the launch. Checked by
// emulation only.
#include "common/paged.cuh"
#include "common/vec.cuh"

extern "C" __global__ void __launch_bounds__(256)
    kv_cache_append_bf16(const bf16* __restrict__ qkv, const unsigned* __restrict__ sequence,
                         const unsigned* __restrict__ position, const unsigned* __restrict__ table,
                         bf16* __restrict__ cache, int rows, int heads, int kv_heads, int d, int table_len,
                         int page_stride) {
    EXPECTS(d % 8 == 0 && page_stride % 8 == 0);
    const unsigned at = blockIdx.x * blockDim.x + threadIdx.x, chunks = d / 8;
    const unsigned chunk = at % chunks, head = at / chunks % (2 * kv_heads), row = at / chunks / (2 * kv_heads);
    if (row >= static_cast<unsigned>(rows)) return;
    const unsigned is_value = head / kv_heads, kv_head = head % kv_heads, place = position[row];
    const unsigned page = table[static_cast<size_t>(sequence[row]) * table_len + place / paged::PAGE];
    const size_t from = (static_cast<size_t>(row) * (heads + 2 * kv_heads) + heads + head) * d + 8 * chunk;
    const size_t to = paged::keys_at(page, page_stride, kv_head, d) +
                      static_cast<size_t>(is_value * paged::PAGE + place % paged::PAGE) * d + 8 * chunk;
    store16(cache + to, load16(qkv + from));
}
