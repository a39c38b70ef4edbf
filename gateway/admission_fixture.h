// Drives an Admission by hand, for its tests: no thread, no clock.
#ifndef BLOCKSERVE_GATEWAY_ADMISSION_FIXTURE_H_
#define BLOCKSERVE_GATEWAY_ADMISSION_FIXTURE_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "gateway/admission.h"
#include "gtest/gtest.h"

namespace blockserve {

class AdmissionTest : public ::testing::Test {
 protected:
  void Make() { admission_ = std::make_unique<Admission>(options_); }
  // Returns what Submit said; the request's id is next_id_ - 1 afterwards.
  absl::Status Submit(const std::string& key = "", uint32_t priority = 2, int64_t tokens = 100,
                      absl::Duration time = absl::Minutes(10)) {
    keys_[next_id_] = key;
    return admission_->Submit(next_id_++, {key, priority, tokens, /*choices=*/1, now_ + time},
                              now_);
  }
  // Fills the places between queue and first block, so that what follows waits.
  void Fill() {
    for (int i = 0; i < options_.max_starting; ++i) {
      ASSERT_TRUE(Submit("filler").ok());
      ASSERT_TRUE(admission_->TakeNext(now_).has_value());
      fillers_.push_back(next_id_ - 1);
    }
  }
  // Ends the oldest of those that were taken, and takes the next.
  std::optional<uint64_t> Next() {
    admission_->Finished(fillers_.front(), /*whole=*/true, now_);
    fillers_.erase(fillers_.begin());
    const std::optional<uint64_t> next = admission_->TakeNext(now_);
    if (next.has_value()) fillers_.push_back(*next);
    return next;
  }

  // As Submit, of a request that may write so many tokens.
  absl::Status SubmitLong(const std::string& key, int64_t length, absl::Duration time,
                          uint32_t priority = 2) {
    lengths_[next_id_] = length;
    return admission_->Submit(next_id_++, {key, priority, length, 1, now_ + time, length}, now_);
  }
  // What there is room for runs, and writes a token every `token`, to its length.
  void Serve(absl::Duration time, absl::Duration token) {
    for (const absl::Time end = now_ + time; now_ < end;) {
      while (const auto id = admission_->TakeNext(now_)) written_[*id] = 0;
      now_ += token;
      for (auto request = written_.begin(); request != written_.end();) {
        auto& [id, written] = *request;
        admission_->Started(id);
        admission_->Wrote(id, 1, now_);
        if (++written == lengths_[id]) {
          admission_->Finished(id, /*whole=*/true, now_);
          request = written_.erase(request);
        } else {
          ++request;
        }
      }
    }
  }

  // As SubmitLong, of a text of so many blocks of 4 tokens.
  absl::Status SubmitText(const std::string& key, int32_t blocks,
                          absl::Duration time = absl::Minutes(10), uint32_t priority = 2) {
    AdmissionRequest request{key, priority, blocks * 4, blocks, now_ + time, 4};
    request.scores = true;
    return admission_->Submit(next_id_++, request, now_);
  }
  // All that there is room for.
  std::vector<uint64_t> TakeAll() {
    std::vector<uint64_t> taken;
    while (const auto id = admission_->TakeNext(now_)) {
      admission_->Started(*id);
      taken.push_back(*id);
    }
    return taken;
  }

  absl::Time now_ = absl::FromUnixSeconds(1000);
  std::map<uint64_t, int64_t> lengths_, written_;  // of those of SubmitLong
  AdmissionOptions options_;
  std::unique_ptr<Admission> admission_;
  uint64_t next_id_ = 1;
  std::map<uint64_t, std::string> keys_;
  std::vector<uint64_t> fillers_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_ADMISSION_FIXTURE_H_
