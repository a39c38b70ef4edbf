#include "model/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/json.h"
#include "common/read_file.h"

namespace blockserve {
namespace {

using nlohmann::json;

constexpr uint64_t kLengthBytes = 8;
// The bound of the reference implementation.
constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr int64_t kMaxIndexBytes = 100'000'000;

// Bytes of an element by the file's spelling; 0 for spellings that are unknown here, whose size is
// then not checked: nothing reads those tensors.
int64_t ElementBytes(absl::string_view dtype_name) {
  static constexpr std::pair<absl::string_view, int64_t> kSizes[] = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},   {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"U16", 2},
      {"I16", 2},  {"F16", 2}, {"BF16", 2}, {"U32", 4},     {"I32", 4},     {"F32", 4},
      {"U64", 8},  {"I64", 8}, {"F64", 8},  {"C64", 8}};
  for (const auto& [name, bytes] : kSizes) {
    if (name == dtype_name) return bytes;
  }
  return 0;
}

DType ParseDType(absl::string_view name) {
  if (name == "F32") return DType::kF32;
  if (name == "F16") return DType::kF16;
  if (name == "BF16") return DType::kBF16;
  return DType::kOther;
}

absl::Status TensorError(absl::string_view source, absl::string_view tensor,
                         absl::string_view what) {
  return absl::InvalidArgumentError(
      absl::StrCat(source, ": tensor \"", tensor.substr(0, 200), "\": ", what));
}

// Reads the shape and gives the number of elements. Empty on success, else what is wrong.
std::string ReadShape(const json& entry, std::vector<int64_t>& shape, int64_t& num_elements) {
  const auto field = entry.find("shape");
  if (field == entry.end() || !field->is_array()) return "shape is not an array of integers";
  num_elements = 1;
  for (const json& dimension : *field) {
    if (!dimension.is_number_unsigned() ||
        dimension.get<uint64_t>() > uint64_t{std::numeric_limits<int64_t>::max()}) {
      return absl::StrCat("shape holds ", dimension.dump().substr(0, 40),
                          "; dimensions are integers from 0 on");
    }
    shape.push_back(dimension.get<int64_t>());
    if (__builtin_mul_overflow(num_elements, shape.back(), &num_elements)) {
      return "shape has more elements than can be counted";
    }
  }
  return "";
}

std::string ReadOffsets(const json& entry, uint64_t data_bytes, uint64_t& begin, uint64_t& end) {
  const auto field = entry.find("data_offsets");
  if (field == entry.end() || !field->is_array() || field->size() != 2 ||
      !(*field)[0].is_number_unsigned() || !(*field)[1].is_number_unsigned()) {
    return "data_offsets is not an array of two integers from 0 on";
  }
  begin = (*field)[0].get<uint64_t>();
  end = (*field)[1].get<uint64_t>();
  if (begin > end) return absl::StrCat("data_offsets [", begin, ", ", end, "] run backwards");
  if (end > data_bytes) {
    return absl::StrCat("data_offsets [", begin, ", ", end, "] lie beyond the file's ", data_bytes,
                        " bytes of data; is the file cut short?");
  }
  return "";
}

absl::StatusOr<TensorView> ReadEntry(const std::string& name, const json& entry,
                                     absl::Span<const uint8_t> data, absl::string_view source) {
  if (!entry.is_object()) {
    return TensorError(source, name, absl::StrCat("is ", JsonTypeName(entry), ", not an object"));
  }
  TensorView view;
  view.name = name;
  const auto dtype = entry.find("dtype");
  if (dtype == entry.end() || !dtype->is_string()) {
    return TensorError(source, name, "dtype is not a string");
  }
  view.dtype_name = dtype->get<std::string>();
  view.dtype = ParseDType(view.dtype_name);
  int64_t num_elements = 0;
  std::string wrong = ReadShape(entry, view.shape, num_elements);
  if (!wrong.empty()) return TensorError(source, name, wrong);
  uint64_t begin = 0;
  uint64_t end = 0;
  wrong = ReadOffsets(entry, data.size(), begin, end);
  if (!wrong.empty()) return TensorError(source, name, wrong);

  const int64_t element_bytes = ElementBytes(view.dtype_name);
  if (element_bytes > 0) {
    int64_t expected_bytes = 0;
    if (__builtin_mul_overflow(num_elements, element_bytes, &expected_bytes) ||
        static_cast<uint64_t>(expected_bytes) != end - begin) {
      return TensorError(
          source, name,
          absl::StrCat("has ", end - begin, " bytes; shape ", ShapeString(view.shape), " of ",
                       view.dtype_name, " needs ", num_elements, " x ", element_bytes));
    }
  }
  view.data = data.subspan(begin, end - begin);
  return view;
}

// The format leaves no byte of the data unnamed and none named twice.
absl::Status CheckContiguous(const std::vector<TensorView>& views, absl::Span<const uint8_t> data,
                             absl::string_view source) {
  std::vector<const TensorView*> in_order;
  in_order.reserve(views.size());
  for (const TensorView& view : views) in_order.push_back(&view);
  std::sort(in_order.begin(), in_order.end(), [](const TensorView* a, const TensorView* b) {
    // Empty tensors come before the tensor that begins where they stand.
    return std::pair(a->data.data(), a->data.size()) < std::pair(b->data.data(), b->data.size());
  });
  const uint8_t* end = data.data();
  absl::string_view previous = "the header";
  for (const TensorView* view : in_order) {
    if (view->data.data() < end) {
      return TensorError(source, view->name, absl::StrCat("overlaps \"", previous, "\""));
    }
    if (view->data.data() > end) {
      return TensorError(source, view->name,
                         absl::StrCat("leaves a gap of ", view->data.data() - end,
                                      " bytes after \"", previous, "\""));
    }
    end = view->data.data() + view->data.size();
    previous = view->name;
  }
  if (end != data.data() + data.size()) {
    return absl::InvalidArgumentError(absl::StrCat(source, ": ", data.data() + data.size() - end,
                                                   " bytes follow the last tensor"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::string_view DTypeName(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "F32";
    case DType::kF16:
      return "F16";
    case DType::kBF16:
      return "BF16";
    case DType::kOther:
      return "other";
  }
  return "other";
}

int64_t DTypeBytes(DType dtype) { return ElementBytes(DTypeName(dtype)); }

int64_t TensorView::num_elements() const {
  int64_t product = 1;
  for (const int64_t dimension : shape) product *= dimension;
  return product;
}

std::string ShapeString(absl::Span<const int64_t> shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

absl::StatusOr<std::vector<TensorView>> ParseSafetensors(absl::Span<const uint8_t> file,
                                                         absl::string_view source) {
  if (file.size() < kLengthBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(source, ": has ", file.size(), " bytes, too few for a safetensors file"));
  }
  uint64_t header_bytes = 0;
  for (size_t i = 0; i < kLengthBytes; ++i) header_bytes |= uint64_t{file[i]} << (8 * i);
  if (header_bytes > file.size() - kLengthBytes) {
    return absl::InvalidArgumentError(absl::StrCat(source, ": the header's length is ",
                                                   header_bytes, " bytes, but the file has ",
                                                   file.size(), " in all"));
  }
  if (header_bytes > kMaxHeaderBytes) {
    return absl::InvalidArgumentError(absl::StrCat(source, ": the header's length is ",
                                                   header_bytes, " bytes; at most ",
                                                   kMaxHeaderBytes, " are allowed"));
  }
  const absl::string_view header(reinterpret_cast<const char*>(file.data()) + kLengthBytes,
                                 header_bytes);
  absl::StatusOr<json> document = ParseJson(header, absl::StrCat(source, ": header"));
  if (!document.ok()) return document.status();
  if (!document->is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(source, ": header: is ", JsonTypeName(*document), ", not an object"));
  }
  const absl::Span<const uint8_t> data = file.subspan(kLengthBytes + header_bytes);
  std::vector<TensorView> views;
  for (const auto& [name, entry] : document->items()) {
    if (name == "__metadata__") continue;
    absl::StatusOr<TensorView> view = ReadEntry(name, entry, data, source);
    if (!view.ok()) return view.status();
    views.push_back(*std::move(view));
  }
  const absl::Status contiguous = CheckContiguous(views, data, source);
  if (!contiguous.ok()) return contiguous;
  return views;
}

absl::StatusOr<SafetensorsSet::MappedFile> SafetensorsSet::MappedFile::Open(
    const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) {
    const int error = errno;
    if (error == ENOENT || error == ENOTDIR) {
      return absl::NotFoundError(absl::StrCat(path, ": no such file"));
    }
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", std::strerror(error)));
  }
  struct stat info;
  if (fstat(descriptor, &info) != 0 || !S_ISREG(info.st_mode)) {
    close(descriptor);
    return absl::InvalidArgumentError(absl::StrCat(path, ": not a regular file"));
  }
  MappedFile file;
  file.size_ = static_cast<size_t>(info.st_size);
  if (file.size_ > 0) {  // an empty map is an error to mmap, and an empty file to the parser
    void* address = mmap(nullptr, file.size_, PROT_READ, MAP_PRIVATE, descriptor, 0);
    if (address == MAP_FAILED) {
      const int error = errno;
      close(descriptor);
      return absl::InternalError(absl::StrCat(path, ": cannot be mapped: ", std::strerror(error)));
    }
    file.address_ = address;
  }
  close(descriptor);
  return file;
}

SafetensorsSet::MappedFile& SafetensorsSet::MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(address_, other.address_);
  std::swap(size_, other.size_);
  return *this;
}

SafetensorsSet::MappedFile::~MappedFile() {
  if (address_ != nullptr) munmap(address_, size_);
}

void SafetensorsSet::MappedFile::ReleasePages() const {
  // Advice only: when the kernel refuses, the pages merely stay.
  if (address_ != nullptr) madvise(address_, size_, MADV_DONTNEED);
}

absl::StatusOr<std::vector<TensorView>> SafetensorsSet::AddFile(const std::string& path) {
  absl::StatusOr<MappedFile> file = MappedFile::Open(path);
  if (!file.ok()) return file.status();
  files_.push_back(*std::move(file));
  paths_.push_back(path);
  return ParseSafetensors(files_.back().bytes(), path);
}

absl::StatusOr<SafetensorsSet> SafetensorsSet::OpenFile(const std::string& path) {
  SafetensorsSet set;
  absl::StatusOr<std::vector<TensorView>> views = set.AddFile(path);
  if (!views.ok()) return views.status();
  for (TensorView& view : *views) {
    std::string name = view.name;
    set.tensors_.emplace(std::move(name), Entry{std::move(view), 0});
  }
  set.opened_ = path;
  return set;
}

absl::Status SafetensorsSet::AddShards(const std::string& directory,
                                       const std::string& index_path) {
  absl::StatusOr<std::string> text = ReadFile(index_path, kMaxIndexBytes);
  if (!text.ok()) return text.status();
  absl::StatusOr<json> document = ParseJson(*text, index_path);
  if (!document.ok()) return document.status();
  const auto weight_map = document->is_object() ? document->find("weight_map") : document->end();
  if (weight_map == document->end() || !weight_map->is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(index_path, ": weight_map is missing or not an object"));
  }
  std::map<std::string, std::vector<std::string>> names_by_shard;
  for (const auto& [name, shard] : weight_map->items()) {
    if (!shard.is_string()) {
      return TensorError(index_path, name,
                         absl::StrCat("its shard is ", JsonTypeName(shard), ", not a file name"));
    }
    std::string file = shard.get<std::string>();
    // A model's files lie in its folder: an index does not get to open others.
    if (file.empty() || file == "." || file == ".." || file.find('/') != std::string::npos ||
        file.find('\0') != std::string::npos) {
      return TensorError(index_path, name, "its shard is not a plain file name");
    }
    names_by_shard[std::move(file)].push_back(name);
  }
  for (const auto& [shard, names] : names_by_shard) {
    absl::StatusOr<std::vector<TensorView>> views = AddFile(absl::StrCat(directory, "/", shard));
    if (absl::IsNotFound(views.status())) {
      return absl::InvalidArgumentError(
          absl::StrCat(index_path, ": names shard \"", shard, "\", which is missing"));
    }
    if (!views.ok()) return views.status();
    // Both lists are in order of name.
    auto view = views->begin();
    for (const std::string& name : names) {
      while (view != views->end() && view->name < name) ++view;
      if (view == views->end() || view->name != name) {
        return TensorError(index_path, name, absl::StrCat("is not in its shard \"", shard, "\""));
      }
      tensors_.emplace(name, Entry{std::move(*view), files_.size() - 1});
      ++view;
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<SafetensorsSet> SafetensorsSet::OpenDirectory(const std::string& directory) {
  const std::string single_path = absl::StrCat(directory, "/model.safetensors");
  absl::StatusOr<SafetensorsSet> single = OpenFile(single_path);
  if (!absl::IsNotFound(single.status())) return single;
  const std::string index_path = absl::StrCat(single_path, ".index.json");
  SafetensorsSet set;
  absl::Status status = set.AddShards(directory, index_path);
  if (absl::IsNotFound(status)) {
    return absl::NotFoundError(
        absl::StrCat(directory, ": neither model.safetensors nor model.safetensors.index.json"));
  }
  if (!status.ok()) return status;
  set.opened_ = index_path;
  return set;
}

const TensorView* SafetensorsSet::Find(absl::string_view name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second.view;
}

std::vector<std::string> SafetensorsSet::Names() const {
  std::vector<std::string> names;
  names.reserve(tensors_.size());
  for (const auto& [name, entry] : tensors_) names.push_back(name);
  return names;
}

const std::string& SafetensorsSet::FileOf(absl::string_view name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? opened_ : paths_[found->second.file];
}

void SafetensorsSet::ReleasePages() const {
  for (const MappedFile& file : files_) file.ReleasePages();
}

}  // namespace blockserve
