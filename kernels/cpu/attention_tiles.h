// What the attention kernels of all instruction sets share: runs of queries, and the way over the
// keys of their pages.
#ifndef BLOCKSERVE_KERNELS_CPU_ATTENTION_TILES_H_
#define BLOCKSERVE_KERNELS_CPU_ATTENTION_TILES_H_

#include <cstdint>
#include <type_traits>

#include "hwy/base.h"
#include "kernels/cpu/cpu_kernels.h"

namespace blockserve {

// Consecutive positions of one sequence and one head: queries first .. first + queries - 1.
struct QueryRun {
  const float* q;        // [queries, q_stride]
  int64_t q_stride;      // elements
  const int32_t* pages;  // of the sequence
  int64_t position;      // of the first query
  int64_t queries;
  int32_t head;
  float* scores;          // [queries, scores_stride]
  int64_t scores_stride;  // elements
  float* sums;            // [queries, head_stride]: outputs so far
  uint32_t* q_pairs;      // [queries, head_stride / 2]: q in bfloat16, for dot products
  float* out;             // [queries, out_stride], at the head's first dimension
  int64_t out_stride;     // elements

  int64_t length() const { return position + queries; }  // positions that the last query sees
  const uint8_t* HeadOfPage(const AttentionArgs& args, int64_t page) const {
    return args.kv + pages[page] * args.layout->page_bytes() + head * args.layout->head_bytes();
  }
};

// Groups of 16 keys that are taken at a time, at most.
inline constexpr int kMaxKeyGroups = 4;

// Groups of 16 keys in ascending order, from page to page.
struct KeyGroups {
  const uint8_t* keys[kMaxKeyGroups];
  int64_t at[kMaxKeyGroups];  // the group's first position
  int count = 0;
};

class KeyGroupReader {
 public:
  KeyGroupReader(const AttentionArgs& args, const QueryRun& run) : args_(args), run_(run) {}

  // The next `most` groups, fewer at the end, none after it.
  KeyGroups Next(int most) {
    const KvLayout& layout = *args_.layout;
    KeyGroups groups;
    while (groups.count < most) {
      const int64_t at = page_ * layout.page_blocks + group_ * kPanelWidth;
      if (at >= run_.length()) break;
      groups.keys[groups.count] = run_.HeadOfPage(args_, page_) + group_ * layout.key_group_bytes();
      groups.at[groups.count++] = at;
      if (++group_ == layout.key_groups()) {
        group_ = 0;
        ++page_;
      }
    }
    return groups;
  }

 private:
  const AttentionArgs& args_;
  const QueryRun& run_;
  int64_t page_ = 0;
  int64_t group_ = 0;  // of the page
};

// Calls body with an integral constant of the tile's queries, which are kMost at most.
template <int kMost, typename Body>
HWY_INLINE void ForTile(int64_t queries, const Body& body) {
  if (queries == kMost) return body(std::integral_constant<int, kMost>());
  if constexpr (kMost > 1) ForTile<kMost - 1>(queries, body);
}

}  // namespace blockserve

#endif  // BLOCKSERVE_KERNELS_CPU_ATTENTION_TILES_H_
