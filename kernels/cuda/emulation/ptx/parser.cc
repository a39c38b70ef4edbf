// nvcc's PTX, as far as our kernels have it: one statement a line.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <optional>
#include <regex>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "kernels/cuda/emulation/ptx/kernel.h"

namespace blockserve::cuda::emulation::ptx {
namespace {

// The one array of shared memory that our kernels have: what a launch asks for.
constexpr char kSharedArray[] = "blockserve_block_memory";

struct DeclaredRegister {
  Register where;
  int32_t bits;  // 1, 16, 32 or 64
};

// By commas outside of brackets and braces, without spaces.
std::vector<std::string> SplitOperands(absl::string_view text) {
  std::vector<std::string> operands(1);
  int depth = 0;
  for (const char c : text) {
    if (c == '[' || c == '{') ++depth;
    if (c == ']' || c == '}') --depth;
    if (c == ',' && depth == 0) {
      operands.emplace_back();
    } else if (c != ' ' && c != '\t') {
      operands.back() += c;
    }
  }
  if (operands.back().empty()) operands.pop_back();
  return operands;
}

// "{a,b}" or "a".
std::vector<std::string> SplitVector(absl::string_view operand) {
  if (absl::ConsumePrefix(&operand, "{")) absl::ConsumeSuffix(&operand, "}");
  return absl::StrSplit(operand, ',');
}

// The bits of the type at the end of an instruction's name.
int32_t TypeBits(absl::string_view name) {
  absl::string_view type = name.substr(name.rfind('.') + 1);
  if (type == "pred") return 1;
  while (!type.empty() && !absl::ascii_isdigit(type[0])) type.remove_prefix(1);
  int32_t bits = 0;
  return absl::SimpleAtoi(type, &bits) ? bits : 0;
}

class Parser {
 public:
  explicit Parser(std::string file) : file_(std::move(file)) {}

  std::map<std::string, Kernel> Parse(std::istream& in) {
    std::string line;
    while (std::getline(in, line)) {
      ++line_;
      text_ = std::string(absl::StripAsciiWhitespace(line.substr(0, line.find("//"))));
      if (!text_.empty()) TakeLine();
    }
    if (kernel_.has_value()) Fail("a kernel that does not end");
    return std::move(kernels_);
  }

 private:
  [[noreturn]] void Fail(absl::string_view what) const {
    std::fprintf(stderr, "PTX: %s:%d: %s: %s\n", file_.c_str(), line_, std::string(what).c_str(),
                 text_.c_str());
    std::abort();
  }

  void TakeLine() {
    if (!kernel_.has_value()) {
      static const std::regex entry(R"((?:\.visible |\.weak )?\.entry ([^( ]+)\(?)");
      std::smatch match;
      if (std::regex_match(text_, match, entry)) {
        kernel_.emplace();
        kernel_->name = NameWithoutHash(match[1]);
        kernel_->file = file_;
        kernel_->can_wait = target_ >= 90;
      } else if (absl::StartsWith(text_, ".target sm_")) {
        target_ = std::atoi(text_.c_str() + 11);
      }
    } else if (!in_body_) {
      TakeHead();
    } else if (text_ == "}") {
      EndKernel();
    } else {
      TakeStatement();
    }
  }

  void TakeHead() {
    static const std::regex array(R"(\.param \.align (\d+) \.b8 ([^\[]+)\[(\d+)\],?)");
    static const std::regex scalar(
        R"(\.param \.[a-z]+(\d+) (?:\.ptr (?:\.[a-z]+ )?\.align \d+ )?([^, ]+),?)");
    std::smatch match;
    if (text_ == "{") {
      in_body_ = true;
    } else if (std::regex_match(text_, match, array)) {
      AddParameter(match[2], std::stoi(match[3]), std::stoi(match[1]));
    } else if (std::regex_match(text_, match, scalar)) {
      AddParameter(match[2], std::stoi(match[1]) / 8, std::stoi(match[1]) / 8);
    } else if (absl::StartsWith(text_, ".maxntid ")) {
      kernel_->max_threads = std::atoi(text_.c_str() + 9);
    } else if (text_ != ")" && !absl::StartsWith(text_, ".minnctapersm")) {
      Fail("not known before a kernel's body");
    }
  }

  void AddParameter(const std::string& name, int32_t size, int32_t alignment) {
    const int32_t offset = (kernel_->parameter_bytes + alignment - 1) / alignment * alignment;
    kernel_->parameter_offsets.push_back(offset);
    kernel_->parameter_sizes.push_back(size);
    kernel_->parameter_bytes = offset + size;
    parameters_[name] = offset;
  }

  void EndKernel() {
    for (const auto& [at, label] : branches_) {
      const auto found = labels_.find(label);
      if (found == labels_.end()) Fail(absl::StrCat("no label ", label));
      kernel_->code[at].target = found->second;
    }
    std::string name = kernel_->name;
    kernels_.emplace(std::move(name), *std::move(kernel_));
    kernel_.reset();
    in_body_ = false;
    registers_.clear();
    constants_.clear();
    specials_.clear();
    parameters_.clear();
    labels_.clear();
    branches_.clear();
  }

  void TakeStatement() {
    absl::string_view text = text_;
    // What inline assembly puts into braces stands on one line.
    if (absl::ConsumePrefix(&text, "{")) {
      absl::ConsumeSuffix(&text, "}");
      text = absl::StripAsciiWhitespace(text);
    }
    if (absl::ConsumeSuffix(&text, ":")) {
      labels_[std::string(text)] = static_cast<int32_t>(kernel_->code.size());
      return;
    }
    if (!absl::ConsumeSuffix(&text, ";")) Fail("a statement that does not end");
    if (absl::ConsumePrefix(&text, ".pragma ")) {
      // Which bytes of the load that follows are used.
      if (absl::ConsumePrefix(&text, "\"used_bytes_mask ")) {
        absl::ConsumeSuffix(&text, "\"");
        if (!absl::SimpleAtoi(text, &used_mask_)) Fail("no mask");
      }
      return;
    }
    if (absl::StartsWith(text, ".reg ")) {
      DeclareRegisters(std::string(text));
      return;
    }
    Instruction instruction;
    instruction.line = line_;
    instruction.text = std::string(text);
    instruction_ = &instruction;
    if (absl::ConsumePrefix(&text, "@")) {
      instruction.guard_negated = absl::ConsumePrefix(&text, "!");
      const size_t end = text.find_first_of(" \t");
      instruction.guard = Declared(std::string(text.substr(0, end))).where;
      text = absl::StripLeadingAsciiWhitespace(text.substr(end));
    }
    const size_t end = text.find_first_of(" \t");
    const std::string name(text.substr(0, end));
    TakeInstruction(name, end == absl::string_view::npos ? std::vector<std::string>()
                                                         : SplitOperands(text.substr(end)));
    kernel_->code.push_back(std::move(instruction));
  }

  void DeclareRegisters(const std::string& text) {
    static const std::regex declaration(R"(\.reg \.([a-z]+)(\d*)\s+(%[a-z]+)<(\d+)>)");
    std::smatch match;
    if (!std::regex_match(text, match, declaration)) Fail("registers");
    const int32_t bits = match[1] == "pred" ? 1 : std::stoi(match[2]);
    for (int32_t i = 0; i < std::stoi(match[4]); ++i) {
      registers_[absl::StrCat(match[3].str(), i)] = {Reserve(bits), bits};
    }
  }

  Register Reserve(int32_t bits) {
    const Register where = kernel_->register_bytes;
    kernel_->register_bytes += kLanes * (bits == 64 ? 8 : 4);
    return where;
  }

  DeclaredRegister Declared(const std::string& name) const {
    const auto found = registers_.find(name);
    if (found == registers_.end()) Fail(absl::StrCat("no register ", name));
    return found->second;
  }

  Register ConstantOf(uint64_t value, int32_t bits) {
    const auto [found, added] = constants_.try_emplace({value, bits}, 0);
    if (added) {
      found->second = Reserve(bits);
      kernel_->constants.push_back({found->second, bits, value});
    }
    return found->second;
  }

  // A register, a special register or a constant of so many bits.
  Register Source(const std::string& operand, int32_t bits) {
    if (bits == 8 || bits == 16) bits = 32;
    static const std::map<std::string, Special> specials = {
        {"%tid.x", Special::kThread},     {"%ntid.x", Special::kThreads},
        {"%ctaid.x", Special::kBlockX},   {"%ctaid.y", Special::kBlockY},
        {"%ctaid.z", Special::kBlockZ},   {"%nctaid.x", Special::kBlocksX},
        {"%nctaid.y", Special::kBlocksY}, {"%nctaid.z", Special::kBlocksZ},
    };
    if (const auto special = specials.find(operand); special != specials.end()) {
      const auto [found, added] = specials_.try_emplace(special->second, 0);
      if (added) {
        found->second = Reserve(32);
        kernel_->specials[found->second] = special->second;
      }
      return found->second;
    }
    if (operand[0] == '%') {
      const DeclaredRegister declared = Declared(operand);
      if ((declared.bits == 16 ? 32 : declared.bits) != bits) {
        Fail(absl::StrCat("a register of ", declared.bits, " bits for ", bits));
      }
      return declared.where;
    }
    if (absl::StrContains(operand, kSharedArray)) return ConstantOf(kSharedBegin, 32);
    if (absl::StartsWith(operand, "0f") || absl::StartsWith(operand, "0d")) {
      return ConstantOf(std::stoull(operand.substr(2), nullptr, 16), bits);
    }
    const bool negative = operand[0] == '-';
    uint64_t value = std::stoull(operand.substr(negative ? 1 : 0), nullptr, 0);
    if (negative) value = 0 - value;
    if (bits == 1) return ConstantOf(value != 0 ? kAllLanes : 0, 1);
    return ConstantOf(bits == 32 ? static_cast<uint32_t>(value) : value, bits);
  }

  // The low half of a register of 64 bits, taken by an instruction of its own.
  Register LowHalf(Register wide) {
    Instruction half;
    half.run = FindArithmetic("cvt.u32.u64")->run;
    half.guard = instruction_->guard;
    half.guard_negated = instruction_->guard_negated;
    half.results = {Reserve(32)};
    half.sources = {wide};
    half.is_move = true;
    half.line = line_;
    half.text = instruction_->text;
    kernel_->code.push_back(half);
    return half.results[0];
  }

  void AddSource(const std::string& operand, int32_t bits) {
    instruction_->sources.push_back(Source(operand, bits));
  }
  void AddResult(const std::string& operand) {
    const DeclaredRegister declared = Declared(operand);
    instruction_->wide = declared.bits == 64;
    instruction_->results.push_back(declared.where);
  }

  // "[base+offset]"; `offset` gets the offset, the base is returned.
  Register Address(absl::string_view operand, int64_t* offset) {
    if (!absl::ConsumePrefix(&operand, "[") || !absl::ConsumeSuffix(&operand, "]")) {
      Fail("no address");
    }
    const size_t plus = operand.find('+');
    const std::string base(operand.substr(0, plus));
    *offset = 0;
    if (plus != absl::string_view::npos && !absl::SimpleAtoi(operand.substr(plus + 1), offset)) {
      Fail("no offset");
    }
    if (base[0] == '%') return Declared(base).where;
    if (const auto parameter = parameters_.find(base); parameter != parameters_.end()) {
      *offset += parameter->second;
    } else if (absl::StrContains(base, kSharedArray)) {
      *offset += kSharedBegin;
    } else {
      Fail(absl::StrCat("no base ", base));
    }
    return kNoRegister;
  }

  void Know(const KnownInstruction* known, absl::string_view name) {
    if (known == nullptr) Fail(absl::StrCat("the interpreter does not know ", name));
    instruction_->run = known->run;
    instruction_->kind = known->kind;
    instruction_->option = known->option;
  }

  void TakeInstruction(const std::string& name, const std::vector<std::string>& operands) {
    Instruction& i = *instruction_;
    if (absl::StartsWith(name, "ld.") || absl::StartsWith(name, "st.")) {
      TakeMove(name, operands);
    } else if (absl::StartsWith(name, "atom.")) {
      Know(FindMemoryOperation(name.substr(0, name.rfind('.'))), name);
      AddResult(operands[0]);
      i.base = Address(operands[1], &i.offset);
      AddSource(operands[2], TypeBits(name));
      if (TypeBits(name) != 32) Fail("an atomic of other than 32 bits");
    } else if (absl::StartsWith(name, "cp.async") || absl::StartsWith(name, "griddepcontrol.")) {
      Know(FindMemoryOperation(name), name);
      if (operands.size() == 1 && !absl::SimpleAtoi(operands[0], &i.option)) Fail("no number");
      if (operands.size() == 4) {
        i.base = Address(operands[0], &i.offset);
        i.sources.push_back(Address(operands[1], &i.source_offset));
        AddSource(operands[3], 32);
      }
    } else if (const KnownInstruction* known = FindWarpOperation(name); known != nullptr) {
      Know(known, name);
      TakeWarpOperands(name, operands);
    } else {
      TakeArithmetic(name, operands);
    }
  }

  // Loads and stores: "ld.SPACE[.cache][.vN].TYPE".
  void TakeMove(const std::string& name, const std::vector<std::string>& operands) {
    Instruction& i = *instruction_;
    const std::vector<std::string> parts = absl::StrSplit(name, '.');
    Know(FindMemoryOperation(absl::StrCat(parts[0], ".", parts[1])), name);
    i.width = TypeBits(name) / 8;
    i.is_signed = parts.back()[0] == 's';
    i.is_move = parts[1] == "param";
    const bool load = parts[0] == "ld";
    i.base = Address(operands[load ? 1 : 0], &i.offset);
    const std::vector<std::string> elements = SplitVector(operands[load ? 0 : 1]);
    i.elements = static_cast<int32_t>(elements.size());
    for (const std::string& element : elements) {
      if (load) {
        AddResult(element);
      } else {
        i.wide = i.width == 8;
        AddSource(element, i.width * 8);
      }
    }
    i.used_bytes = i.elements * i.width;
    while (load && used_mask_ != 0 && (used_mask_ >> (i.used_bytes - 1) & 1) == 0) --i.used_bytes;
    used_mask_ = 0;
  }

  void TakeWarpOperands(const std::string& name, const std::vector<std::string>& operands) {
    Instruction& i = *instruction_;
    if (i.kind == Kind::kBranch) {
      branches_.emplace_back(kernel_->code.size(), operands[0]);
    } else if (name == "bar.sync") {
      if (operands[0] != "0") Fail("another barrier than 0");
    } else if (name == "bar.warp.sync") {
      AddSource(operands[0], 32);
    } else if (absl::StartsWith(name, "shfl.")) {
      for (const absl::string_view result : absl::StrSplit(operands[0], '|')) {
        AddResult(std::string(result));
      }
      for (size_t j = 1; j < operands.size(); ++j) AddSource(operands[j], 32);
    } else if (absl::StartsWith(name, "vote.")) {
      AddResult(operands[0]);
      AddSource(operands[1], 1);
      AddSource(operands[2], 32);
    } else if (absl::StartsWith(name, "ldmatrix.")) {
      for (const std::string& result : SplitVector(operands[0])) AddResult(result);
      i.base = Address(operands[1], &i.offset);
    } else if (absl::StartsWith(name, "mma.")) {
      for (const std::string& result : SplitVector(operands[0])) AddResult(result);
      for (size_t j = 1; j < operands.size(); ++j) {
        for (const std::string& source : SplitVector(operands[j])) AddSource(source, 32);
      }
    }
  }

  void TakeArithmetic(const std::string& name, const std::vector<std::string>& operands) {
    Instruction& i = *instruction_;
    const int32_t bits = TypeBits(name);
    i.is_move = absl::StartsWith(name, "mov.") || absl::StartsWith(name, "cvta.");
    if (absl::StartsWith(operands[0], "{")) {
      Know(FindArithmetic(absl::StrCat(name, " part")), name);
      for (const std::string& result : SplitVector(operands[0])) AddResult(result);
      AddSource(operands[1], bits);
      return;
    }
    AddResult(operands[0]);
    if (operands.size() > 1 && absl::StartsWith(operands[1], "{")) {
      Know(FindArithmetic(absl::StrCat(name, " join")), name);
      for (const std::string& source : SplitVector(operands[1])) AddSource(source, bits / 2);
      return;
    }
    Know(FindArithmetic(name), name);
    for (size_t j = 1; j < operands.size(); ++j) {
      int32_t source_bits = bits;
      if (absl::StartsWith(name, "selp.") && j == 3) source_bits = 1;
      if ((absl::StartsWith(name, "shl.") || absl::StartsWith(name, "shr.")) && j == 2) {
        source_bits = 32;
      }
      if (absl::StartsWith(name, "bfi.") && j > 2) source_bits = 32;
      // What is converted may lie in a register that is wider.
      if (absl::StartsWith(name, "cvt.") && source_bits <= 32 && operands[j][0] == '%' &&
          Declared(operands[j]).bits == 64) {
        i.sources.push_back(LowHalf(Declared(operands[j]).where));
        continue;
      }
      AddSource(operands[j], source_bits);
    }
  }

  const std::string file_;
  int32_t line_ = 0;
  std::string text_;
  int32_t target_ = 90;
  std::map<std::string, Kernel> kernels_;
  // Of the kernel that is being read.
  std::optional<Kernel> kernel_;
  bool in_body_ = false;
  uint32_t used_mask_ = 0;
  Instruction* instruction_ = nullptr;
  std::map<std::string, DeclaredRegister> registers_;
  std::map<std::pair<uint64_t, int32_t>, Register> constants_;
  std::map<Special, Register> specials_;
  std::map<std::string, int32_t> parameters_;  // offsets
  std::map<std::string, int32_t> labels_;
  std::vector<std::pair<size_t, std::string>> branches_;
};

}  // namespace

std::string NameWithoutHash(const std::string& mangled) {
  // An anonymous namespace has the file's name and a hash of how it was compiled.
  static const std::regex hash("[0-9]+_GLOBAL__N__[0-9a-f]{8}_[0-9]+_[a-z_]+_cu_[0-9a-f]{8}");
  return std::regex_replace(mangled, hash, "12_GLOBAL__N_1");
}

std::map<std::string, Kernel> ParseFile(const std::string& path) {
  std::ifstream in(path);
  if (!in) {
    std::fprintf(stderr, "PTX: %s cannot be read\n", path.c_str());
    std::abort();
  }
  return Parser(path.substr(path.rfind('/') + 1)).Parse(in);
}

std::map<std::string, Kernel> ParseText(const std::string& text, const std::string& file) {
  std::istringstream in(text);
  return Parser(file).Parse(in);
}

}  // namespace blockserve::cuda::emulation::ptx
