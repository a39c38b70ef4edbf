// Audits: a share of the tiers' answers is computed by a second worker too and compared bit for
// bit.
#ifndef BLOCKSERVE_GATEWAY_AUDIT_H_
#define BLOCKSERVE_GATEWAY_AUDIT_H_

#include <cstdint>

namespace blockserve {

struct AuditOptions {
  double rows = 0;      // share of the token tier's rows, 0 to 1
  double contexts = 0;  // share of the block tier's context rows, 0 to 1
  // What is audited goes to nobody before it has been compared; where nobody is there to compare it
  // with, it waits as for a tier that is gone.
  bool hold = false;
};

// Since the start.
struct AuditStats {
  int64_t compared = 0;  // alike
  int64_t differed = 0;  // two differed
  int64_t settled = 0;   // of these: a third told who was wrong
  int64_t skipped = 0;   // chosen, but nobody could compare
};

// Chooses a share of calls, evenly and without a clock or random numbers of the system.
class AuditShare {
 public:
  explicit AuditShare(double share) : share_(share) {}

  bool Take() {
    if (share_ <= 0) return false;
    if (share_ >= 1) return true;
    // SplitMix64: Sebastiano Vigna's generator.
    state_ += 0x9e3779b97f4a7c15u;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    return static_cast<double>(z >> 11) * 0x1.0p-53 < share_;
  }

 private:
  const double share_;
  uint64_t state_ = 0;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_AUDIT_H_
