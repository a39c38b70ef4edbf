// Gateways' cores in weather of every kind (gateway/simulation.h). Whatever happens, what a client
// received is right, every request ends once, in time, and with an error only where faults are a
// reason for it; and in fair weather all that is left ends soon, and nothing stays behind.
#include "gateway/simulation.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "gateway/tokenizer_for_test.h"

namespace blockserve {
namespace {

// BLOCKSERVE_SIMULATION=FIRST:COUNT runs other seeds than those of every day, all of them, and
// tells of each what happened.
TEST(SimulationTest, NoWeatherChangesAToken) {
  unsigned long long first = 1;
  unsigned long long count = 300;
  const char* const others = std::getenv("BLOCKSERVE_SIMULATION");
  if (others != nullptr) {
    ASSERT_EQ(std::sscanf(others, "%llu:%llu", &first, &count), 2) << others;
  }
  for (uint64_t seed = first; seed < first + count; ++seed) {
    SCOPED_TRACE(absl::StrCat("BLOCKSERVE_SIMULATION=", seed, ":1"));
    Simulation simulation(seed, TokenizerForTest());
    simulation.Run();
    if (others != nullptr) std::printf("%s\n", simulation.Summary().c_str());
    if (others == nullptr && HasFailure()) return;
  }
}

}  // namespace
}  // namespace blockserve
