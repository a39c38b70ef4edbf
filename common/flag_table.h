// The flags of a program or subcommand, bound to the fields of its options.
//
// Abseil's flags are global to a program and hold one value each; the subcommands of `blockserve`
// share names with other defaults and have flags that may be given several times, and programs that
// have flags in common take them from one function that adds them to a table. Parsing itself is
// that of every program (common/program.h).
#ifndef BLOCKSERVE_COMMON_FLAG_TABLE_H_
#define BLOCKSERVE_COMMON_FLAG_TABLE_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/program.h"

namespace blockserve {

// Targets must outlive the table; what they hold when a flag is added is its default.
class FlagTable {
 public:
  // The flags added from here on are of this subject: --helpfull lists them under it, --help only
  // names it. Those added before stand in both.
  void Subject(absl::string_view subject) { subject_ = std::string(subject); }
  // `flag` has no effect without `needed`: to give it where that is left out is bad usage. Left out
  // is what is empty, 0 or false too. Both are names of flags that the table has.
  void Needs(absl::string_view flag, absl::string_view needed);
  // The same of every flag of a subject.
  void SubjectNeeds(absl::string_view subject, absl::string_view needed);

  void Add(absl::string_view name, absl::string_view help, std::string* target);
  void Add(absl::string_view name, absl::string_view help, std::optional<std::string>* target);
  void Add(absl::string_view name, absl::string_view help, bool* target);
  void Add(absl::string_view name, absl::string_view help, int32_t* target);
  void Add(absl::string_view name, absl::string_view help, int64_t* target);
  void Add(absl::string_view name, absl::string_view help, uint64_t* target);
  void Add(absl::string_view name, absl::string_view help, float* target);
  void Add(absl::string_view name, absl::string_view help, double* target);
  void Add(absl::string_view name, absl::string_view help, std::optional<int32_t>* target);
  void Add(absl::string_view name, absl::string_view help, std::optional<uint64_t>* target);
  void Add(absl::string_view name, absl::string_view help, std::optional<float>* target);
  // Seconds, or with a unit: "1500ms", "2m".
  void Add(absl::string_view name, absl::string_view help, absl::Duration* target);
  // May be given several times: each adds an element.
  void AddRepeated(absl::string_view name, absl::string_view help,
                   std::vector<std::string>* target);
  // Token ids "1,2,3"; an empty list is a value too.
  void AddTokens(absl::string_view name, absl::string_view help,
                 std::optional<std::vector<int32_t>>* target);
  // One of a few words.
  void AddChoice(absl::string_view name, absl::string_view help,
                 const std::vector<std::string>& choices, std::string* target);
  // By itself it means `bare`; a number may follow.
  void AddOptionalNumber(absl::string_view name, absl::string_view help, int32_t bare,
                         std::optional<int32_t>* target);

  const std::vector<FlagBinding>& flags() const { return flags_; }

  // INVALID_ARGUMENT: one line naming the flag, or the argument that is no flag; "--a needs --b".
  absl::Status Parse(const std::vector<std::string>& arguments) const;
  // For mains: an exit code where the process is to end: after --help, --helpfull, --version and
  // bad usage, each already printed. `program` is what messages and --version call it, with its
  // subcommand.
  std::optional<int> ParseCommandLine(absl::string_view program, absl::string_view usage,
                                      const std::vector<std::string>& arguments) const;

 private:
  void Bind(absl::string_view name, absl::string_view help, std::string default_value,
            std::function<bool(const std::string&, std::string*)> set,
            FlagBinding::Value value = FlagBinding::Value::kNeeded);

  struct Need {
    std::string flag;
    std::string needed;
  };

  std::vector<FlagBinding> flags_;
  std::vector<Need> needs_;
  std::string subject_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_COMMON_FLAG_TABLE_H_
