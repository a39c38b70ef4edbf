#include "common/status_catalogue.h"

#include "gtest/gtest.h"

namespace blockserve {
namespace {

TEST(StatusCatalogue, EveryCodeIsThere) {
  for (int code = 0; code <= 16; ++code) {
    const StatusEntry& entry = LookUpStatus(static_cast<absl::StatusCode>(code));
    EXPECT_EQ(static_cast<int>(entry.code), code);
    EXPECT_EQ(entry.name, absl::StatusCodeToString(entry.code));
    EXPECT_EQ(StatusCodeToWire(entry.code), code);
  }
}

TEST(StatusCatalogue, UnknownNumbersAreUnknown) {
  for (const int code : {-1, 17, 99, 1 << 30}) {
    EXPECT_EQ(StatusCodeFromWire(code), absl::StatusCode::kUnknown);
  }
}

TEST(StatusCatalogue, SaysWhatToDo) {
  EXPECT_EQ(HandlingOf(absl::OkStatus()), Handling::kNone);
  EXPECT_EQ(HandlingOf(absl::UnavailableError("")), Handling::kRetry);
  EXPECT_EQ(HandlingOf(absl::NotFoundError("")), Handling::kRetry);
  EXPECT_EQ(HandlingOf(absl::ResourceExhaustedError("")), Handling::kReject);
  EXPECT_EQ(HandlingOf(absl::InternalError("")), Handling::kFail) << "may have killed its worker";
  EXPECT_EQ(HandlingOf(absl::DeadlineExceededError("")), Handling::kFail);
  EXPECT_EQ(LookUpStatus(absl::StatusCode::kResourceExhausted).http_status, 429);
}

TEST(StatusCatalogue, AnnotateKeepsTheCode) {
  EXPECT_EQ(Annotate(absl::AbortedError("b"), "a"), absl::AbortedError("a: b"));
  EXPECT_TRUE(Annotate(absl::OkStatus(), "a").ok());
}

}  // namespace
}  // namespace blockserve
