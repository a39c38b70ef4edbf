#include "bench/load_lengths.h"

#include <algorithm>
#include <cmath>
#include <sstream>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/read_file.h"

namespace blockserve {
namespace {

absl::StatusOr<std::vector<int64_t>> ReadLengths(const std::string& path) {
  absl::StatusOr<std::string> text = ReadFile(path);
  if (!text.ok()) return absl::NotFoundError(absl::StrCat(path, " ", text.status().message()));
  std::istringstream file(*std::move(text));
  std::vector<int64_t> lengths;
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    const absl::string_view stripped = absl::StripAsciiWhitespace(line);
    if (stripped.empty() || stripped[0] == '#') continue;
    int64_t length = 0;
    if (!absl::SimpleAtoi(stripped, &length) || length < 1 || length > kMostTokens) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ":", number, ": \"", stripped.substr(0, 40), "\" is no length"));
    }
    lengths.push_back(length);
  }
  if (lengths.empty()) return absl::InvalidArgumentError(absl::StrCat(path, " has no lengths"));
  return lengths;
}

}  // namespace

absl::StatusOr<LengthDistribution> LengthDistribution::Parse(absl::string_view text) {
  LengthDistribution made;
  if (absl::string_view path = text; absl::ConsumePrefix(&path, "file:")) {
    absl::StatusOr<std::vector<int64_t>> lengths = ReadLengths(std::string(path));
    if (!lengths.ok()) return lengths.status();
    made.kind_ = Kind::kList;
    made.list_ = *std::move(lengths);
    return made;
  }
  const auto bad = [&](absl::string_view why) {
    return absl::InvalidArgumentError(absl::StrCat("\"", text, "\": ", why));
  };
  const std::vector<std::string> parts = absl::StrSplit(text, ':');
  std::vector<double> numbers;
  const bool named = parts.size() > 1;
  for (size_t i = named ? 1 : 0; i < parts.size(); ++i) {
    double number = 0;
    if (!absl::SimpleAtod(parts[i], &number) || !(number >= 0) || number > kMostTokens) {
      return bad(absl::StrCat("\"", parts[i], "\" is no number from 0 to 1e9"));
    }
    numbers.push_back(number);
  }
  struct Form {
    absl::string_view name;
    Kind kind;
    size_t numbers;
  };
  static constexpr Form kForms[] = {{"uniform", Kind::kUniform, 2},
                                    {"normal", Kind::kNormal, 2},
                                    {"lognormal", Kind::kLognormal, 2},
                                    {"exponential", Kind::kExponential, 1}};
  if (named) {
    const auto* form = std::find_if(std::begin(kForms), std::end(kForms),
                                    [&](const Form& one) { return one.name == parts[0]; });
    if (form == std::end(kForms)) {
      return bad("known are a number, uniform, normal, lognormal, exponential and file");
    }
    if (numbers.size() != form->numbers) {
      return bad(absl::StrCat(form->name, " takes ", form->numbers, " numbers"));
    }
    made.kind_ = form->kind;
  }
  made.a_ = numbers[0];
  made.b_ = numbers.size() > 1 ? numbers[1] : 0;
  if (made.a_ < 1) return bad("lengths begin at 1");
  if (made.kind_ == Kind::kConstant && made.a_ != std::floor(made.a_)) {
    return bad("a length is a whole number");
  }
  if (made.kind_ == Kind::kUniform && made.b_ < made.a_) return bad("the range is empty");
  return made;
}

int64_t LengthDistribution::shortest() const {
  switch (kind_) {
    case Kind::kConstant:
    case Kind::kUniform:
      return static_cast<int64_t>(a_);
    case Kind::kList:
      return *std::min_element(list_.begin(), list_.end());
    case Kind::kNormal:
    case Kind::kLognormal:
    case Kind::kExponential:
      return 1;
  }
  return 1;
}

int64_t LengthDistribution::Draw(LoadRandom& random) const {
  double length = a_;
  switch (kind_) {
    case Kind::kConstant:
      break;
    case Kind::kUniform:
      length = std::floor(a_ + (std::floor(b_) - std::floor(a_) + 1) * random.Uniform());
      break;
    case Kind::kNormal:
      length = a_ + b_ * random.Normal();
      break;
    case Kind::kLognormal:
      length = a_ * std::exp(b_ * random.Normal());
      break;
    case Kind::kExponential:
      length = a_ * random.Exponential();
      break;
    case Kind::kList:
      return list_[random.Below(list_.size())];
  }
  return std::llround(std::clamp(length, 1.0, kMostTokens));
}

}  // namespace blockserve
