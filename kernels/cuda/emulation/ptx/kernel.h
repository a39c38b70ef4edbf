// Kernels as they stand in nvcc's PTX, taken apart for the interpreter (block.h).
#ifndef BLOCKSERVE_KERNELS_CUDA_EMULATION_PTX_KERNEL_H_
#define BLOCKSERVE_KERNELS_CUDA_EMULATION_PTX_KERNEL_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace blockserve::cuda::emulation::ptx {

inline constexpr int kLanes = 32;
using LaneMask = uint32_t;
inline constexpr LaneMask kAllLanes = 0xffffffffu;
// Where a block's shared memory begins: the device keeps the first kilobyte.
inline constexpr uint32_t kSharedBegin = 1024;

class Block;
struct Instruction;
// Runs an instruction for the lanes of the mask.
using Operation = void (*)(Block& block, const Instruction& instruction, LaneMask mask);

enum class Kind {
  kUsual,
  kBranch,
  kEnd,      // of the thread
  kBarrier,  // of the block
  kWarp,     // all lanes of the warp take part
};

// A register is an offset into what a warp has of them: 32 lanes of 32 or 64 bits (16 bits take
// 32), or a mask of lanes. Constants and special registers lie there too.
using Register = int32_t;
inline constexpr Register kNoRegister = -1;

struct Instruction {
  Operation run = nullptr;
  Kind kind = Kind::kUsual;
  Register guard = kNoRegister;
  bool guard_negated = false;
  std::vector<Register> results;
  std::vector<Register> sources;
  // Of what is loaded or stored: elements, their bytes, whether they are extended by their sign,
  // and whether the registers have 64 bits.
  int32_t elements = 1;
  int32_t width = 0;
  bool is_signed = false;
  bool wide = false;
  // The bytes that are used of what a load was widened to.
  int32_t used_bytes = 0;
  Register base = kNoRegister;  // of the address
  int64_t offset = 0;
  int64_t source_offset = 0;  // of the second address of a copy
  int32_t option = 0;         // by instruction: a form, a number of groups
  int32_t target = -1;        // of a branch
  bool is_move = false;       // costs nothing, mostly, in machine code
  int32_t line = 0;
  std::string text;
};

struct Constant {
  Register where;
  int32_t bits;  // 1, 32 or 64
  uint64_t value;
};

enum class Special { kThread, kBlockX, kBlockY, kBlockZ, kThreads, kBlocksX, kBlocksY, kBlocksZ };

struct Kernel {
  std::string name;  // mangled, the hash of its file taken out
  std::string file;
  std::vector<int32_t> parameter_offsets;
  std::vector<int32_t> parameter_sizes;
  int32_t parameter_bytes = 0;
  int32_t max_threads = 0;
  bool can_wait = false;  // for earlier work: of a target from 9.0 on
  int32_t register_bytes = 0;
  std::vector<Constant> constants;
  std::map<Register, Special> specials;
  std::vector<Instruction> code;
};

// Of a mangled name, whatever file it was compiled from.
std::string NameWithoutHash(const std::string& mangled);

// All kernels of a file of PTX, by name. Ends the process, naming file and line, where the
// interpreter does not know something.
std::map<std::string, Kernel> ParseFile(const std::string& path);
std::map<std::string, Kernel> ParseText(const std::string& text, const std::string& file);

// What the name of an instruction stands for; nullptr: it is not known.
struct KnownInstruction {
  Operation run = nullptr;
  Kind kind = Kind::kUsual;
  int32_t option = 0;
};
const KnownInstruction* FindArithmetic(const std::string& name);
const KnownInstruction* FindWarpOperation(const std::string& name);
// Of loads, stores, copies and atomics: the name without vector and type.
const KnownInstruction* FindMemoryOperation(const std::string& name);

}  // namespace blockserve::cuda::emulation::ptx

#endif  // BLOCKSERVE_KERNELS_CUDA_EMULATION_PTX_KERNEL_H_
