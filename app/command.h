// What the subcommands of `blockserve` have in common.
#ifndef BLOCKSERVE_APP_COMMAND_H_
#define BLOCKSERVE_APP_COMMAND_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/flag_table.h"

namespace blockserve {

using Arguments = std::vector<std::string>;

struct Command {
  absl::string_view name;
  absl::string_view summary;
  int (*run)(const Arguments& arguments);  // returns the exit code
};

int RunServe(const Arguments& arguments);
int RunGenerate(const Arguments& arguments);
int RunScore(const Arguments& arguments);
int RunEvaluate(const Arguments& arguments);
int RunTokenize(const Arguments& arguments);
int RunDetokenize(const Arguments& arguments);
int RunInspect(const Arguments& arguments);
int RunKeys(const Arguments& arguments);

// The bytes of a file, "-" being standard input. Errors name `flag`.
absl::StatusOr<std::string> ReadInput(absl::string_view flag, const std::string& path);

}  // namespace blockserve

#endif  // BLOCKSERVE_APP_COMMAND_H_
