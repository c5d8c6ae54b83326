// What the compiler calls at each access of a kernel that it instruments (-fsanitize=thread): the traffic that the access makes, counted
// as the hardware would count it. The lanes of a warp that make an access at one place in the code, the n-th time each, make it together.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <set>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "shim.h"

// In src/calls.rs.
extern "C" void emulator_accessed(const void* p, unsigned bytes, unsigned write);

namespace {
constexpr unsigned SECTOR = 32, BANKS = 32, WORD = 4;

// As in src/counters.rs.
struct Counts {
    uint64_t read, written, copied, distinct_read, distinct_written, sectors, least_sectors, wavefronts, least_wavefronts,
        flops;
};

// Where a warp's lanes access memory together.
struct Request {
    bool shared;
    struct Lane {
        uintptr_t address;
        unsigned lane, bytes;
    };
    std::vector<Lane> lanes;
};

// An access in the code and the warp that makes it for the turn-th time, or a thread that has made it so often.
struct Key {
    uintptr_t site;
    unsigned who, turn;
    bool write;
    bool operator==(const Key& k) const { return site == k.site && who == k.who && turn == k.turn && write == k.write; }
};
struct Hash {
    size_t operator()(const Key& k) const {
        uint64_t hash = k.site;
        for (const uint64_t part : {uint64_t{k.who}, uint64_t{k.turn}, uint64_t{k.write}})
            hash = (hash ^ part) * 0x9E3779B97F4A7C15ull, hash ^= hash >> 32;
        return hash;
    }
};

struct Memory {
    uintptr_t from = 0, to = 0;
    bool holds(uintptr_t address) const { return from <= address && address < to; }
};

bool counting = false;
Memory global, shared;
Counts counts;
// Sectors of global memory that the launch has read, and written.
std::unordered_set<uintptr_t> touched[2];
// Of the block that runs.
emulator::Index block;
std::unordered_map<Key, Request, Hash> requests;
std::unordered_map<Key, unsigned, Hash> turns;
// Of each thread: the access of several words that it is about to make.
std::unordered_map<unsigned, std::pair<uintptr_t, unsigned>> announced;

// Sectors that a request touches, and the fewest that so many distinct bytes fill.
void count_sectors(const Request& request) {
    std::set<uintptr_t> sectors;
    std::set<std::pair<uintptr_t, unsigned>> spans;
    for (const auto& lane : request.lanes) {
        for (uintptr_t s = lane.address / SECTOR; s <= (lane.address + lane.bytes - 1) / SECTOR; ++s) sectors.insert(s);
        spans.insert({lane.address, lane.bytes});
    }
    uint64_t bytes = 0;
    for (const auto& span : spans) bytes += span.second;
    counts.sectors += sectors.size();
    counts.least_sectors += (bytes + SECTOR - 1) / SECTOR;
}

// Shared memory serves 16-byte accesses by eight lanes at a time, 8-byte ones by sixteen; a bank gives one word a wavefront.
void count_wavefronts(const Request& request) {
    const unsigned bytes = request.lanes[0].bytes, together = bytes >= 16 ? 8 : bytes == 8 ? 16 : 32;
    for (unsigned first = 0; first < 32; first += together) {
        std::unordered_set<uintptr_t> words[BANKS];
        size_t worst = 0;
        for (const auto& lane : request.lanes) {
            if (lane.lane / together * together != first) continue;
            for (uintptr_t w = lane.address / WORD; w <= (lane.address + lane.bytes - 1) / WORD; ++w) {
                words[w % BANKS].insert(w);
                worst = std::max(worst, words[w % BANKS].size());
            }
        }
        counts.wavefronts += worst, counts.least_wavefronts += worst > 0;
    }
}

void end_block() {
    for (const auto& entry : requests) entry.second.shared ? count_wavefronts(entry.second) : count_sectors(entry.second);
    requests.clear(), turns.clear(), announced.clear();
}

unsigned thread_in_block() {
    const auto& h = emulator::here;
    return h.thread.x + h.block_dim.x * (h.thread.y + h.block_dim.y * h.thread.z);
}

void begin_access() {
    const auto& b = emulator::here.block;
    if (b.x != block.x || b.y != block.y || b.z != block.z) end_block(), block = b;
}

void request(uintptr_t address, unsigned bytes, bool write, uintptr_t site) {
    const unsigned thread = thread_in_block();
    const unsigned turn = turns[{site, thread, 0, write}]++;
    Request& of = requests[{site, thread / 32, turn, write}];
    of.shared = shared.holds(address);
    of.lanes.push_back({address, thread % 32, bytes});
}

void access(const void* p, unsigned bytes, bool write, uintptr_t site) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(p);
    if (!counting || (!global.holds(address) && !shared.holds(address))) return;
    if (shared.holds(address)) emulator_accessed(p, bytes, write);
    begin_access();
    if (global.holds(address)) {
        (write ? counts.written : counts.read) += bytes;
        for (uintptr_t s = address / SECTOR; s <= (address + bytes - 1) / SECTOR; ++s) touched[write].insert(s);
    }
    // A word of a wide access, which was counted when it was announced.
    const auto wide = announced.find(thread_in_block());
    if (wide != announced.end() && wide->second.first <= address && address + bytes <= wide->second.first + wide->second.second)
        return;
    request(address, bytes, write, site);
}
}  // namespace

extern "C" {
void counter_begin(uintptr_t global_from, uintptr_t global_to, uintptr_t shared_from, uintptr_t shared_to) {
    global = {global_from, global_to}, shared = {shared_from, shared_to};
    counts = Counts{}, block = {~0u, 0, 0}, counting = true;
}

// A thread is about to access so many bytes at once.
void counter_announce(const void* p, unsigned bytes, uintptr_t site) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(p);
    if (!counting || (!global.holds(address) && !shared.holds(address))) return;
    begin_access();
    announced[thread_in_block()] = {address, bytes};
    request(address, bytes, false, site);
}

// An asynchronous copy, of whole sectors.
void counter_copied(uintptr_t from, size_t bytes) {
    if (!counting || bytes == 0) return;
    counts.copied += bytes;
    for (uintptr_t s = from / SECTOR; s <= (from + bytes - 1) / SECTOR; ++s) touched[0].insert(s);
}

void counter_flops(uint64_t flops) { counts.flops += flops; }

Counts counter_end() {
    end_block();
    counting = false;
    counts.distinct_read = touched[0].size() * SECTOR, counts.distinct_written = touched[1].size() * SECTOR;
    touched[0].clear(), touched[1].clear();
    return counts;
}

#define SITE reinterpret_cast<uintptr_t>(__builtin_return_address(0))
#define ACCESSES(bytes)                                                                      \
    void __tsan_read##bytes(void* p) { access(p, bytes, false, SITE); }                      \
    void __tsan_write##bytes(void* p) { access(p, bytes, true, SITE); }                      \
    void __tsan_unaligned_read##bytes(void* p) { access(p, bytes, false, SITE); }            \
    void __tsan_unaligned_write##bytes(void* p) { access(p, bytes, true, SITE); }            \
    void __tsan_volatile_read##bytes(void* p) { access(p, bytes, false, SITE); }             \
    void __tsan_volatile_write##bytes(void* p) { access(p, bytes, true, SITE); }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
void __tsan_read_range(void* p, size_t bytes) { access(p, bytes, false, SITE); }
void __tsan_write_range(void* p, size_t bytes) { access(p, bytes, true, SITE); }
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
}
