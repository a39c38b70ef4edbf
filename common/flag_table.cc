#include "common/flag_table.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "common/prepare_process.h"

namespace blockserve {
namespace {

bool ParseValue(const std::string& text, int32_t* value) { return absl::SimpleAtoi(text, value); }
bool ParseValue(const std::string& text, int64_t* value) { return absl::SimpleAtoi(text, value); }
bool ParseValue(const std::string& text, uint64_t* value) { return absl::SimpleAtoi(text, value); }
bool ParseValue(const std::string& text, float* value) { return absl::SimpleAtof(text, value); }
bool ParseValue(const std::string& text, double* value) { return absl::SimpleAtod(text, value); }

absl::string_view Kind(const int32_t*) { return "it must be a whole number"; }
absl::string_view Kind(const int64_t*) { return "it must be a whole number"; }
absl::string_view Kind(const uint64_t*) { return "it must be a whole number from 0 on"; }
absl::string_view Kind(const float*) { return "it must be a number"; }
absl::string_view Kind(const double*) { return "it must be a number"; }

template <class T>
std::function<bool(const std::string&, std::string*)> NumberSetter(T* target) {
  return [target](const std::string& text, std::string* error) {
    if (ParseValue(text, target)) return true;
    *error = std::string(Kind(target));
    return false;
  };
}

template <class T>
std::function<bool(const std::string&, std::string*)> NumberSetter(std::optional<T>* target) {
  return [target](const std::string& text, std::string* error) {
    T value = 0;
    if (!NumberSetter(&value)(text, error)) return false;
    *target = value;
    return true;
  };
}

}  // namespace

void FlagTable::Bind(absl::string_view name, absl::string_view help, std::string default_value,
                     std::function<bool(const std::string&, std::string*)> set,
                     FlagBinding::Value value) {
  flags_.push_back({std::string(name), std::string(help), std::move(default_value), value,
                    std::move(set), subject_});
}

void FlagTable::Add(absl::string_view name, absl::string_view help, std::string* target) {
  Bind(name, help, *target, [target](const std::string& text, std::string*) {
    *target = text;
    return true;
  });
}

void FlagTable::Add(absl::string_view name, absl::string_view help,
                    std::optional<std::string>* target) {
  Bind(name, help, "", [target](const std::string& text, std::string*) {
    *target = text;
    return true;
  });
}

void FlagTable::Add(absl::string_view name, absl::string_view help, bool* target) {
  const auto set = [target](const std::string& text, std::string* error) {
    if (absl::SimpleAtob(text, target)) return true;
    *error = "it must be true or false";
    return false;
  };
  Bind(name, help, *target ? "true" : "", set, FlagBinding::Value::kBoolean);
}

void FlagTable::Add(absl::string_view name, absl::string_view help, int32_t* target) {
  Bind(name, help, absl::StrCat(*target), NumberSetter(target));
}
void FlagTable::Add(absl::string_view name, absl::string_view help, int64_t* target) {
  Bind(name, help, absl::StrCat(*target), NumberSetter(target));
}
void FlagTable::Add(absl::string_view name, absl::string_view help, uint64_t* target) {
  Bind(name, help, absl::StrCat(*target), NumberSetter(target));
}
void FlagTable::Add(absl::string_view name, absl::string_view help, float* target) {
  Bind(name, help, absl::StrCat(*target), NumberSetter(target));
}
void FlagTable::Add(absl::string_view name, absl::string_view help, double* target) {
  Bind(name, help, absl::StrCat(*target), NumberSetter(target));
}
void FlagTable::Add(absl::string_view name, absl::string_view help,
                    std::optional<int32_t>* target) {
  Bind(name, help, target->has_value() ? absl::StrCat(**target) : "", NumberSetter(target));
}
void FlagTable::Add(absl::string_view name, absl::string_view help,
                    std::optional<uint64_t>* target) {
  Bind(name, help, target->has_value() ? absl::StrCat(**target) : "", NumberSetter(target));
}
void FlagTable::Add(absl::string_view name, absl::string_view help, std::optional<float>* target) {
  Bind(name, help, target->has_value() ? absl::StrCat(**target) : "", NumberSetter(target));
}

void FlagTable::Add(absl::string_view name, absl::string_view help, absl::Duration* target) {
  const auto set = [target](const std::string& text, std::string* error) {
    return ParseFlagTime(text, target, error);
  };
  Bind(name, help, absl::FormatDuration(*target), set);
}

void FlagTable::AddRepeated(absl::string_view name, absl::string_view help,
                            std::vector<std::string>* target) {
  Bind(name, help, "", [target](const std::string& text, std::string*) {
    target->push_back(text);
    return true;
  });
}

void FlagTable::AddTokens(absl::string_view name, absl::string_view help,
                          std::optional<std::vector<int32_t>>* target) {
  Bind(name, help, "", [target](const std::string& text, std::string* error) {
    std::vector<int32_t> ids;
    if (absl::StripAsciiWhitespace(text).empty()) {
      *target = std::move(ids);
      return true;
    }
    for (absl::string_view part : absl::StrSplit(text, ',')) {
      int32_t id = 0;
      if (!absl::SimpleAtoi(part, &id)) {
        *error = absl::StrCat("'", part, "' is no token id");
        return false;
      }
      ids.push_back(id);
    }
    *target = std::move(ids);
    return true;
  });
}

void FlagTable::AddChoice(absl::string_view name, absl::string_view help,
                          const std::vector<std::string>& choices, std::string* target) {
  Bind(name, help, *target, [target, choices](const std::string& text, std::string* error) {
    if (std::find(choices.begin(), choices.end(), text) == choices.end()) {
      *error = absl::StrCat("it must be ", absl::StrJoin(choices, " or "));
      return false;
    }
    *target = text;
    return true;
  });
}

void FlagTable::AddOptionalNumber(absl::string_view name, absl::string_view help, int32_t bare,
                                  std::optional<int32_t>* target) {
  const auto set = [target, bare](const std::string& text, std::string* error) {
    if (!text.empty()) return NumberSetter(target)(text, error);
    *target = bare;
    return true;
  };
  Bind(name, help, "", set, FlagBinding::Value::kOptionalNumber);
}

void FlagTable::Needs(absl::string_view flag, absl::string_view needed) {
  needs_.push_back({std::string(flag), std::string(needed)});
}

void FlagTable::SubjectNeeds(absl::string_view subject, absl::string_view needed) {
  for (const FlagBinding& flag : flags_) {
    if (flag.subject == subject) Needs(flag.name, needed);
  }
}

absl::Status FlagTable::Parse(const std::vector<std::string>& arguments) const {
  std::map<std::string, std::string> given;  // the last value of each
  const auto find = [&](absl::string_view name) -> std::optional<FlagBinding> {
    for (const FlagBinding& flag : flags_) {
      if (flag.name != name) continue;
      FlagBinding noted = flag;
      noted.set = [&given, &flag](const std::string& value, std::string* error) {
        given[flag.name] = value;
        return flag.set(value, error);
      };
      return noted;
    }
    return std::nullopt;
  };
  absl::StatusOr<std::vector<std::string>> rest = ParseFlags(arguments, find);
  if (!rest.ok()) return rest.status();
  if (!rest->empty()) {
    return absl::InvalidArgumentError(absl::StrCat("\"", rest->front(), "\" is no flag"));
  }
  const auto asks_for_something = [&](const std::string& name) {
    const auto last = given.find(name);
    std::string value;
    if (last != given.end()) {
      value = last->second;
    } else if (const std::optional<FlagBinding> flag = find(name)) {
      value = flag->default_value;
    }
    bool on = true;
    return absl::SimpleAtob(value, &on) ? on : !value.empty();
  };
  for (const Need& need : needs_) {
    if (given.count(need.flag) == 0 || !asks_for_something(need.flag) ||
        asks_for_something(need.needed)) {
      continue;
    }
    return absl::InvalidArgumentError(
        absl::StrCat(FlagSpelling(need.flag), " needs ", FlagSpelling(need.needed)));
  }
  return absl::OkStatus();
}

std::optional<int> FlagTable::ParseCommandLine(absl::string_view program, absl::string_view usage,
                                               const std::vector<std::string>& arguments) const {
  PrepareProcess();
  const bool full = AsksFor(arguments, "--helpfull");
  if (full || AsksFor(arguments, "--help") || AsksFor(arguments, "-h")) {
    std::fputs(HelpText(usage, flags_, full).c_str(), stdout);
    return kExitOk;
  }
  if (AsksFor(arguments, "--version")) {
    std::puts(VersionText(program.substr(0, program.find(' '))).c_str());
    return kExitOk;
  }
  const absl::Status status = Parse(arguments);
  if (!status.ok()) return ReportUsageError(program, status);
  return std::nullopt;
}

}  // namespace blockserve
