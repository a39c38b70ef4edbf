// MatmulMode::kPinned and kFastest, on cuBLASLt.
//
// cuBLASLt sees column-major matrices: y^T [n, rows] = W [n, k] x^T [k, rows], so that the rows of
// a batch are its columns.
#include <cublasLt.h>
#include <dlfcn.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/cuda_status.h"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/matmul_libraries.h"
#include "kernels/cuda/matmul_pinning.h"

namespace blockserve::cuda {
namespace {

// Algorithms that are asked for when one is chosen.
constexpr int kCandidates = 32;

#define BLOCKSERVE_TEXT(x) #x
#define BLOCKSERVE_TEXT_OF(x) BLOCKSERVE_TEXT(x)
constexpr char kLibraryName[] = "libcublasLt.so." BLOCKSERVE_TEXT_OF(CUBLAS_VER_MAJOR);

// Every function of cuBLASLt that is used here.
#define BLOCKSERVE_CUBLASLT_FUNCTIONS(X)   \
  X(cublasLtCreate)                        \
  X(cublasLtDestroy)                       \
  X(cublasLtGetVersion)                    \
  X(cublasLtGetStatusString)               \
  X(cublasLtMatmul)                        \
  X(cublasLtMatmulAlgoCheck)               \
  X(cublasLtMatmulAlgoConfigGetAttribute)  \
  X(cublasLtMatmulAlgoGetHeuristic)        \
  X(cublasLtMatmulDescInit_internal)       \
  X(cublasLtMatmulDescSetAttribute)        \
  X(cublasLtMatmulPreferenceInit_internal) \
  X(cublasLtMatmulPreferenceSetAttribute)  \
  X(cublasLtMatrixLayoutInit_internal)

struct Functions {
#define BLOCKSERVE_MEMBER(name) decltype(&::name) name = nullptr;
  BLOCKSERVE_CUBLASLT_FUNCTIONS(BLOCKSERVE_MEMBER)
#undef BLOCKSERVE_MEMBER
};

class Library final : public MatmulLibrary, public std::enable_shared_from_this<Library> {
 public:
  explicit Library(MatmulMode mode) : MatmulLibrary(mode) {}
  ~Library() override {
    // The library itself stays loaded: CUDA's do not take being unloaded.
    if (handle_ != nullptr) f.cublasLtDestroy(handle_);
  }

  absl::Status Open() {
    const std::string name = kLibraryName;
    void* library = nullptr;
    // Not every installation is in the loader's path. Both reasons are told: a file may be there,
    // and something that it needs not.
    std::string why;
    for (const std::string& path : {name, absl::StrCat("/usr/local/cuda/lib64/", name)}) {
      library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
      if (library != nullptr) break;
      const char* error = dlerror();
      absl::StrAppend(&why, why.empty() ? "" : "; ", error != nullptr ? error : "no reason given");
    }
    if (library == nullptr) {
      return absl::FailedPreconditionError(
          absl::StrCat("matrix products need ", name, " (package libcublas of CUDA ",
                       CUBLAS_VER_MAJOR, "), which cannot be loaded: ", why));
    }
#define BLOCKSERVE_LOAD(function)                                                            \
  f.function = reinterpret_cast<decltype(&::function)>(dlsym(library, #function));           \
  if (f.function == nullptr) {                                                               \
    return absl::FailedPreconditionError(absl::StrCat(name, " has no function " #function)); \
  }
    BLOCKSERVE_CUBLASLT_FUNCTIONS(BLOCKSERVE_LOAD)
#undef BLOCKSERVE_LOAD
    return Status(f.cublasLtCreate(&handle_), "cublasLtCreate");
  }

  std::string name() const override { return absl::StrCat("cuBLASLt ", f.cublasLtGetVersion()); }
  cublasLtHandle_t handle() const { return handle_; }

  absl::Status Status(cublasStatus_t status, absl::string_view call) const {
    if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
    return absl::InternalError(
        absl::StrCat(call, ": ", f.cublasLtGetStatusString(status), " (", status, ")"));
  }

  Functions f;

 private:
  absl::StatusOr<std::unique_ptr<const MatmulPlan>> MakePlan(const MatmulShape& shape,
                                                             int64_t max_rows) const override;

  cublasLtHandle_t handle_ = nullptr;
};

cudaDataType_t DataType(ElementType type) {
  return type == ElementType::kF32 ? CUDA_R_32F : CUDA_R_16BF;
}

// A product of so many rows, as cuBLASLt describes it: on the stack, so that running it allocates
// nothing.
struct Description {
  cublasLtMatmulDescOpaque_t operation;
  cublasLtMatrixLayoutOpaque_t w, x, y;

  absl::Status Init(const Library& library, const MatmulShape& shape, int64_t rows,
                    const void* bias) {
    const Functions& f = library.f;
    // Float32 is float32, not TF32: the golden numbers would notice.
    absl::Status status =
        library.Status(f.cublasLtMatmulDescInit_internal(&operation, sizeof(operation),
                                                         CUBLAS_COMPUTE_32F, CUDA_R_32F),
                       "cublasLtMatmulDescInit");
    const auto set = [&](cublasLtMatmulDescAttributes_t attribute, const auto& value) {
      if (!status.ok()) return;
      status = library.Status(
          f.cublasLtMatmulDescSetAttribute(&operation, attribute, &value, sizeof(value)),
          "cublasLtMatmulDescSetAttribute");
    };
    const cublasOperation_t transposed = CUBLAS_OP_T;
    set(CUBLASLT_MATMUL_DESC_TRANSA, transposed);
    if (shape.bias) {
      const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
      const int32_t bias_type = DataType(shape.output);
      set(CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
      set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, bias_type);
      set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
    }
    const auto layout = [&](cublasLtMatrixLayoutOpaque_t& matrix, ElementType type,
                            int64_t contiguous, int64_t count) {
      if (!status.ok()) return;
      status = library.Status(
          f.cublasLtMatrixLayoutInit_internal(&matrix, sizeof(matrix), DataType(type), contiguous,
                                              count, contiguous),
          "cublasLtMatrixLayoutInit");
    };
    layout(w, shape.type, shape.k, shape.n);
    layout(x, shape.type, shape.k, rows);
    layout(y, shape.output, shape.n, rows);
    return status;
  }
};

class LtPlan final : public MatmulPlan {
 public:
  LtPlan(std::shared_ptr<const Library> library, const MatmulShape& shape, int64_t max_rows,
         MatmulMode mode)
      : MatmulPlan(shape, mode, max_rows,
                   mode == MatmulMode::kPinned ? kMaxPinnedRows : PadRows(max_rows)),
        workspace_bytes_(WorkspaceBytes(mode)),
        library_(std::move(library)) {}

  absl::Status ChoosePinnedAlgorithm() {
    const absl::StatusOr<PinnedChoice<cublasLtMatmulAlgo_t>> chosen =
        ChoosePinned<cublasLtMatmulAlgo_t>([this](int64_t rows) { return Candidates(rows, true); },
                                           [this](const cublasLtMatmulAlgo_t& algorithm,
                                                  int64_t rows) { return Runs(algorithm, rows); });
    if (!chosen.ok()) return chosen.status();
    if (!chosen->algorithm.has_value()) {
      return NoAlgorithm(
          kMaxPinnedRows,
          absl::StrCat(": of ", chosen->proposals, " that it proposes the first does not run for ",
                       chosen->refused_rows, " rows"));
    }
    algorithms_ = {{kMaxPinnedRows, *chosen->algorithm}};
    return absl::OkStatus();
  }

  // For 64 rows, 128, 256 … `max_rows`: the best of each.
  absl::Status ChooseFastestAlgorithms(int64_t max_rows) {
    for (int64_t rows = kMatmulRowTile; rows < PadRows(max_rows); rows *= 2) {
      algorithms_.push_back({rows, {}});
    }
    algorithms_.push_back({PadRows(max_rows), {}});
    int64_t fewest = kMatmulRowTile;
    for (Choice& choice : algorithms_) {
      const absl::StatusOr<std::vector<cublasLtMatmulAlgo_t>> candidates =
          Candidates(choice.rows, false);
      if (!candidates.ok()) return candidates.status();
      const auto runs = [&](const cublasLtMatmulAlgo_t& candidate) {
        for (int64_t rows = fewest; rows <= choice.rows; rows += kMatmulRowTile) {
          if (!Runs(candidate, rows)) return false;
        }
        return true;
      };
      const auto best = std::find_if(candidates->begin(), candidates->end(), runs);
      if (best == candidates->end()) return NoAlgorithm(choice.rows);
      choice.algorithm = *best;
      fewest = choice.rows + kMatmulRowTile;
    }
    return absl::OkStatus();
  }

  std::string description() const override {
    std::string text;
    for (const Choice& choice : algorithms_) {
      absl::StrAppend(
          &text, text.empty() ? "" : "; ", "up to ", choice.rows, " rows: algorithm ",
          Config<int32_t>(choice.algorithm, CUBLASLT_ALGO_CONFIG_ID), ", tile ",
          Config<uint32_t>(choice.algorithm, CUBLASLT_ALGO_CONFIG_TILE_ID), ", stages ",
          Config<uint32_t>(choice.algorithm, CUBLASLT_ALGO_CONFIG_STAGES_ID), ", cluster ",
          Config<uint16_t>(choice.algorithm, CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID), ", custom ",
          Config<uint32_t>(choice.algorithm, CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION), ", split ",
          Config<int32_t>(choice.algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM));
    }
    return text;
  }

 private:
  struct Choice {
    int64_t rows = 0;  // a multiple of kMatmulRowTile
    cublasLtMatmulAlgo_t algorithm = {};
  };

  absl::Status RunPiece(const void* x, const void* w, const void* bias, void* y, int64_t rows,
                        const Stream& stream) const override {
    const int64_t padded = PadRows(rows);
    Description d;
    if (absl::Status status = d.Init(*library_, shape(), padded, bias); !status.ok()) return status;
    const auto choice =
        std::find_if(algorithms_.begin(), algorithms_.end() - 1,
                     [padded](const Choice& candidate) { return candidate.rows >= padded; });
    const float alpha = 1.0f;
    const float beta = shape().accumulate ? 1.0f : 0.0f;
    return library_->Status(
        library_->f.cublasLtMatmul(library_->handle(), &d.operation, &alpha, w, &d.w, x, &d.x,
                                   &beta, y, &d.y, y, &d.y, &choice->algorithm,
                                   stream.workspace().data(), workspace_bytes_, stream.get()),
        "cublasLtMatmul");
  }

  absl::Status NoAlgorithm(int64_t rows, absl::string_view why = "") const {
    return absl::FailedPreconditionError(absl::StrCat(
        "cuBLASLt has no algorithm for products of up to ", rows, " rows, k = ", shape().k,
        ", n = ", shape().n, shape().type == ElementType::kF32 ? ", float32" : ", bfloat16", why));
  }

  template <typename T>
  T Config(const cublasLtMatmulAlgo_t& algorithm,
           cublasLtMatmulAlgoConfigAttributes_t attribute) const {
    T value = {};
    size_t written = 0;
    const cublasStatus_t status = library_->f.cublasLtMatmulAlgoConfigGetAttribute(
        &algorithm, attribute, &value, sizeof(value), &written);
    return status == CUBLAS_STATUS_SUCCESS && written == sizeof(value) ? value : T{};
  }

  // What cuBLASLt proposes within the workspace, best first; `whole_sums`: only algorithms that
  // take each output's sum in one piece.
  absl::StatusOr<std::vector<cublasLtMatmulAlgo_t>> Candidates(int64_t rows,
                                                               bool whole_sums) const {
    Description d;
    // The pointer's alignment is what matters here.
    absl::Status status = d.Init(*library_, shape(), rows, reinterpret_cast<const void*>(256));
    if (!status.ok()) return status;
    std::vector<cublasLtMatmulHeuristicResult_t> results;
    if (whole_sums) {
      status = Propose(d, CUBLASLT_REDUCTION_SCHEME_NONE, results);
      if (!status.ok()) return status;
    }
    // What is asked for is looked at below anyway.
    if (results.empty()) status = Propose(d, CUBLASLT_REDUCTION_SCHEME_MASK, results);
    if (!status.ok()) return status;
    std::vector<cublasLtMatmulAlgo_t> candidates;
    for (const cublasLtMatmulHeuristicResult_t& result : results) {
      if (result.state != CUBLAS_STATUS_SUCCESS || result.workspaceSize > workspace_bytes_) {
        continue;
      }
      if (whole_sums && (Config<int32_t>(result.algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM) > 1 ||
                         Config<uint32_t>(result.algo, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME) !=
                             CUBLASLT_REDUCTION_SCHEME_NONE)) {
        continue;
      }
      candidates.push_back(result.algo);
    }
    return candidates;
  }

  // cuBLASLt's proposals that join sums by one of the schemes; none where it has none.
  absl::Status Propose(Description& d, uint32_t schemes,
                       std::vector<cublasLtMatmulHeuristicResult_t>& results) const {
    const Functions& f = library_->f;
    cublasLtMatmulPreferenceOpaque_t preference;
    absl::Status status =
        library_->Status(f.cublasLtMatmulPreferenceInit_internal(&preference, sizeof(preference)),
                         "cublasLtMatmulPreferenceInit");
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
      if (!status.ok()) return;
      status = library_->Status(
          f.cublasLtMatmulPreferenceSetAttribute(&preference, attribute, &value, sizeof(value)),
          "cublasLtMatmulPreferenceSetAttribute");
    };
    const uint64_t workspace = workspace_bytes_;
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace);
    const uint32_t alignment = 16;
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment);
    set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, schemes);
    if (!status.ok()) return status;
    results.resize(kCandidates);
    int found = 0;
    const cublasStatus_t searched =
        f.cublasLtMatmulAlgoGetHeuristic(library_->handle(), &d.operation, &d.w, &d.x, &d.y, &d.y,
                                         &preference, kCandidates, results.data(), &found);
    results.resize(searched == CUBLAS_STATUS_SUCCESS ? found : 0);
    if (searched == CUBLAS_STATUS_NOT_SUPPORTED) return absl::OkStatus();
    return library_->Status(searched, "cublasLtMatmulAlgoGetHeuristic");
  }

  bool Runs(const cublasLtMatmulAlgo_t& algorithm, int64_t rows) const {
    Description d;
    if (!d.Init(*library_, shape(), rows, reinterpret_cast<const void*>(256)).ok()) return false;
    cublasLtMatmulHeuristicResult_t result = {};
    return library_->f.cublasLtMatmulAlgoCheck(library_->handle(), &d.operation, &d.w, &d.x, &d.y,
                                               &d.y, &algorithm,
                                               &result) == CUBLAS_STATUS_SUCCESS &&
           result.state == CUBLAS_STATUS_SUCCESS && result.workspaceSize <= workspace_bytes_;
  }

  const size_t workspace_bytes_;
  std::shared_ptr<const Library> library_;
  std::vector<Choice> algorithms_;  // ascending; one when pinned
};

absl::StatusOr<std::unique_ptr<const MatmulPlan>> Library::MakePlan(const MatmulShape& shape,
                                                                    int64_t max_rows) const {
  auto plan = std::make_unique<LtPlan>(shared_from_this(), shape, max_rows, mode());
  const absl::Status chosen = mode() == MatmulMode::kPinned
                                  ? plan->ChoosePinnedAlgorithm()
                                  : plan->ChooseFastestAlgorithms(max_rows);
  if (!chosen.ok()) return chosen;
  return plan;
}

}  // namespace

absl::StatusOr<std::shared_ptr<const MatmulLibrary>> LoadCublasLt(MatmulMode mode) {
  auto library = std::make_shared<Library>(mode);
  if (absl::Status status = library->Open(); !status.ok()) return status;
  return library;
}

}  // namespace blockserve::cuda
