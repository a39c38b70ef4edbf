#include "model/config.h"

#include <cmath>
#include <limits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/json.h"
#include "common/read_file.h"

namespace blockserve {
namespace {

using nlohmann::json;

// Bounds of the dimensions. Far above every model that exists, and low enough that no product of
// the shapes of MODEL's tensors leaves int64, nor a row count (3 D, r T) int32.
constexpr int64_t kMaxWidth = 1 << 16;
constexpr int64_t kMaxIntermediate = 1 << 20;
constexpr int64_t kMaxLayers = 1 << 10;
constexpr int64_t kMaxBlockLength = 1 << 10;
// The masses of so many ids, 2^40 at most each, add up in 64 bits (docs/sampling.md).
constexpr int64_t kMaxVocab = 1 << 23;
constexpr int64_t kMaxPositions = int64_t{1} << 31;
constexpr int64_t kMaxConfigBytes = 1 << 20;
// Kernels add it in float32, where less is zero: a row of equal values would become NaN.
constexpr double kMinLayerNormEps = 1e-37;

// Reads the fields of one JSON object and keeps the first error. After an error every read returns
// a harmless value, so the caller checks once.
class FieldReader {
 public:
  // `prefix` is the way to the object, "block_decoder." or empty.
  FieldReader(const json& object, absl::string_view source, absl::string_view prefix,
              absl::Status& status)
      : object_(object), source_(source), prefix_(prefix), status_(status) {}

  // A field that is null counts as absent: Hugging Face writes optional fields that way.
  const json* Get(absl::string_view name) const {
    const auto found = object_.find(std::string(name));
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }
  bool Has(absl::string_view name) const { return Get(name) != nullptr; }

  int64_t Integer(absl::string_view name, int64_t min, int64_t max) {
    const json* value = Required(name);
    return value == nullptr ? min : ToInteger(name, *value, min, max);
  }
  int64_t Integer(absl::string_view name, int64_t min, int64_t max, int64_t absent) {
    const json* value = Get(name);
    return value == nullptr ? absent : ToInteger(name, *value, min, max);
  }
  int32_t Integer32(absl::string_view name, int64_t min, int64_t max) {
    return static_cast<int32_t>(Integer(name, min, max));
  }
  int32_t Integer32(absl::string_view name, int64_t min, int64_t max, int64_t absent) {
    return static_cast<int32_t>(Integer(name, min, max, absent));
  }

  double Number(absl::string_view name, double absent) {
    const json* value = Get(name);
    if (value == nullptr) return absent;
    if (!value->is_number()) {
      Fail(name, absl::StrCat("is ", JsonTypeName(*value), "; a number is needed"));
      return absent;
    }
    return value->get<double>();
  }

  bool Boolean(absl::string_view name, bool absent) {
    const json* value = Get(name);
    if (value == nullptr) return absent;
    if (!value->is_boolean()) {
      Fail(name, absl::StrCat("is ", JsonTypeName(*value), "; true or false is needed"));
      return absent;
    }
    return value->get<bool>();
  }

  std::string String(absl::string_view name) {
    const json* value = Required(name);
    return value == nullptr ? "" : ToString(name, *value);
  }
  std::string String(absl::string_view name, absl::string_view absent) {
    const json* value = Get(name);
    return value == nullptr ? std::string(absent) : ToString(name, *value);
  }

  // The object `name`; an empty one after an error.
  const json& Object(absl::string_view name) {
    static const json& kEmpty = *new json(json::object());
    const json* value = Required(name);
    if (value == nullptr) return kEmpty;
    if (!value->is_object()) {
      Fail(name, absl::StrCat("is ", JsonTypeName(*value), "; an object is needed"));
      return kEmpty;
    }
    return *value;
  }

  void Fail(absl::string_view name, absl::string_view what) {
    if (!status_.ok()) return;
    status_ = absl::InvalidArgumentError(absl::StrCat(source_, ": ", prefix_, name, " ", what));
  }
  bool ok() const { return status_.ok(); }

 private:
  const json* Required(absl::string_view name) {
    const json* value = Get(name);
    if (value == nullptr) Fail(name, "is missing");
    return value;
  }

  int64_t ToInteger(absl::string_view name, const json& value, int64_t min, int64_t max) {
    if (!value.is_number_integer()) {
      Fail(name, absl::StrCat("is ", JsonTypeName(value), "; an integer is needed"));
      return min;
    }
    const bool too_large =
        value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(max);
    const bool too_small = !value.is_number_unsigned() && value.get<int64_t>() < min;
    const bool small_unsigned =
        value.is_number_unsigned() && min > 0 && value.get<uint64_t>() < static_cast<uint64_t>(min);
    if (too_large || too_small || small_unsigned) {
      Fail(name, absl::StrCat("is ", value.dump(), "; it must lie between ", min, " and ", max));
      return min;
    }
    return value.get<int64_t>();
  }

  std::string ToString(absl::string_view name, const json& value) {
    if (!value.is_string()) {
      Fail(name, absl::StrCat("is ", JsonTypeName(value), "; a string is needed"));
      return "";
    }
    return value.get<std::string>();
  }

  const json& object_;
  absl::string_view source_;
  std::string prefix_;
  absl::Status& status_;
};

std::string Quoted(absl::string_view text) {
  // Long values would drown the message.
  return absl::StrCat("\"", text.substr(0, 60), text.size() > 60 ? "…" : "", "\"");
}

// The value of whichever of two spellings is there; they must agree where both are.
double NumberOfTwoNames(FieldReader& reader, absl::string_view name, absl::string_view other,
                        double absent) {
  const double value = reader.Number(name, reader.Number(other, absent));
  if (reader.Has(other) && reader.Number(other, absent) != value) {
    reader.Fail(other, absl::StrCat("differs from ", name));
  }
  return value;
}

// Newer files hold the rotary settings in an object of their own. Kinds other than plain rotary
// would silently give another model, so they are refused.
void ReadRotaryObject(FieldReader& reader, absl::string_view source, absl::string_view prefix,
                      absl::Status& status, StackConfig& stack) {
  for (const absl::string_view name : {"rope_scaling", "rope_parameters"}) {
    if (!reader.Has(name)) continue;
    FieldReader inner(reader.Object(name), source, absl::StrCat(prefix, name, "."), status);
    const std::string type = inner.String("rope_type", inner.String("type", "default"));
    if (type != "default") {
      inner.Fail("rope_type", absl::StrCat("is ", Quoted(type), "; only default is known"));
    }
    stack.rotary_base = inner.Number("rope_theta", stack.rotary_base);
    stack.rotary_pct = inner.Number("partial_rotary_factor", stack.rotary_pct);
  }
}

// `prefix` is the way to the stack's object in `source`, "block_decoder." or empty.
StackConfig ReadStack(const json& object, absl::string_view source, absl::string_view prefix,
                      absl::Status& status) {
  FieldReader reader(object, source, prefix, status);
  StackConfig stack;
  const std::string type = reader.String("model_type", "gpt_neox");
  if (type != "gpt_neox") {
    reader.Fail("model_type", absl::StrCat("is ", Quoted(type), "; only gpt_neox is known"));
  }
  stack.hidden_size = reader.Integer32("hidden_size", 1, kMaxWidth);
  stack.num_heads = reader.Integer32("num_attention_heads", 1, kMaxWidth);
  stack.num_layers = reader.Integer32("num_hidden_layers", 1, kMaxLayers);
  stack.intermediate_size =
      reader.Integer32("intermediate_size", 1, kMaxIntermediate, int64_t{4} * stack.hidden_size);
  stack.max_positions = reader.Integer("max_position_embeddings", 1, kMaxPositions, 2048);
  stack.rotary_pct = NumberOfTwoNames(reader, "rotary_pct", "partial_rotary_factor", 0.25);
  stack.rotary_base = NumberOfTwoNames(reader, "rotary_emb_base", "rope_theta", 10000.0);
  stack.layer_norm_eps = reader.Number("layer_norm_eps", 1e-5);
  stack.parallel_residual = reader.Boolean("use_parallel_residual", true);
  const std::string act = reader.String("hidden_act", "gelu");
  if (act != "gelu") {
    reader.Fail("hidden_act",
                absl::StrCat("is ", Quoted(act), "; only gelu (the erf form) is known"));
  }
  if (!reader.Boolean("attention_bias", true)) {
    reader.Fail("attention_bias", "is false; only attention with biases is known");
  }
  ReadRotaryObject(reader, source, prefix, status, stack);
  if (!reader.ok()) return stack;

  if (stack.hidden_size % stack.num_heads != 0) {
    reader.Fail("num_attention_heads",
                absl::StrCat("is ", stack.num_heads, ", which does not divide hidden_size ",
                             stack.hidden_size));
  } else if (!(stack.rotary_pct >= 0.0 && stack.rotary_pct <= 1.0)) {
    reader.Fail("rotary_pct",
                absl::StrCat("is ", stack.rotary_pct, "; it must lie between 0 and 1"));
  } else if (stack.rotary_dims() % 2 != 0) {
    reader.Fail("rotary_pct",
                absl::StrCat("is ", stack.rotary_pct, ": of head size ", stack.head_size(),
                             " that rotates ", stack.rotary_dims(), " dimensions, an odd number"));
  } else if (!(stack.rotary_base >= 1.0 && stack.rotary_base <= 1e15)) {
    reader.Fail("rotary_emb_base",
                absl::StrCat("is ", stack.rotary_base, "; it must lie between 1 and 1e15"));
  } else if (!(stack.layer_norm_eps >= kMinLayerNormEps && stack.layer_norm_eps <= 1.0)) {
    reader.Fail("layer_norm_eps",
                absl::StrCat("is ", stack.layer_norm_eps, "; it must lie between ",
                             kMinLayerNormEps, " and 1"));
  }
  return stack;
}

// What both kinds have at the top level. `eos_absent` is the id where the file names none.
void ReadCommon(FieldReader& reader, int32_t eos_absent, ModelConfig& config) {
  config.vocab_size = reader.Integer32("vocab_size", 1, kMaxVocab);
  // Ids are compared with V below, to name both numbers.
  constexpr int64_t kMaxId = std::numeric_limits<int32_t>::max();
  config.bos_token_id = reader.Integer32("bos_token_id", 0, kMaxId, 0);
  config.eos_token_id = reader.Integer32("eos_token_id", 0, kMaxId, eos_absent);
  config.pad_token_id = reader.Integer32("pad_token_id", 0, kMaxId, 0);
  config.torch_dtype = reader.String("torch_dtype", reader.String("dtype", ""));
  if (config.torch_dtype != "" && config.torch_dtype != "float32" &&
      config.torch_dtype != "float16" && config.torch_dtype != "bfloat16") {
    reader.Fail("torch_dtype", absl::StrCat("is ", Quoted(config.torch_dtype),
                                            "; known are float32, float16 and bfloat16"));
  }
  if (reader.Boolean("tie_word_embeddings", false)) {
    reader.Fail("tie_word_embeddings", "is true; only models with a head of their own are known");
  }
  const std::string alignment = reader.String("default_alignment", "end");
  if (const absl::StatusOr<Alignment> parsed = ParseAlignment(alignment); parsed.ok()) {
    config.default_alignment = *parsed;
  } else {
    reader.Fail("default_alignment",
                absl::StrCat("is ", Quoted(alignment), "; known are end, start and none"));
  }
  if (!reader.ok()) return;
  const std::pair<absl::string_view, int32_t> ids[] = {{"bos_token_id", config.bos_token_id},
                                                       {"eos_token_id", config.eos_token_id},
                                                       {"pad_token_id", config.pad_token_id}};
  for (const auto& [name, id] : ids) {
    if (id >= config.vocab_size) {
      reader.Fail(name, absl::StrCat("is ", id, ", outside of vocab_size ", config.vocab_size));
    }
  }
}

void ReadEmbedder(FieldReader& reader, ModelConfig& config) {
  const std::string type = reader.String("type", "lookup");
  if (type != "lookup") {
    reader.Fail("type", absl::StrCat("is ", Quoted(type), "; only lookup is known"));
  }
  const std::string projection = reader.String("projection");
  if (projection == "concat") {
    config.projection = Projection::kConcat;
  } else if (projection == "sum") {
    config.projection = Projection::kSum;
  } else if (projection == "projection_layer") {
    config.projection = Projection::kProjectionLayer;
  } else {
    reader.Fail("projection", absl::StrCat("is ", Quoted(projection),
                                           "; known are concat, sum and projection_layer"));
  }
  config.embedding_width = reader.Integer32("hidden_size", 1, kMaxWidth);
  if (!reader.ok()) return;

  const int32_t width = config.block.hidden_size;
  if (config.projection == Projection::kConcat) {
    if (width % config.block_length != 0) {
      reader.Fail("projection", absl::StrCat("is concat, but block_length ", config.block_length,
                                             " does not divide block_decoder.hidden_size ", width));
    } else if (config.embedding_width != width / config.block_length) {
      reader.Fail("hidden_size", absl::StrCat("is ", config.embedding_width,
                                              "; with concat it must be block_decoder.hidden_size ",
                                              width, " / block_length ", config.block_length, " = ",
                                              width / config.block_length));
    }
  } else if (config.projection == Projection::kSum && config.embedding_width != width) {
    reader.Fail("hidden_size",
                absl::StrCat("is ", config.embedding_width,
                             "; with sum it must be block_decoder.hidden_size ", width));
  }
}

// How the token decoder is fed.
void ReadTokenInput(FieldReader& reader, ModelConfig& config) {
  const std::string method = reader.String("expansion_method", "expansion_layer");
  if (method != "expansion_layer") {
    reader.Fail("expansion_method",
                absl::StrCat("is ", Quoted(method), "; only expansion_layer is known"));
  }
  const std::string strategy = reader.String("decoding_strategy");
  if (strategy == "prefix") {
    config.strategy = DecodingStrategy::kPrefix;
  } else if (strategy == "summation") {
    config.strategy = DecodingStrategy::kSummation;
  } else if (strategy == "cross_attention") {
    reader.Fail("decoding_strategy",
                "is \"cross_attention\", which is not supported; known are prefix and summation");
  } else {
    reader.Fail("decoding_strategy",
                absl::StrCat("is ", Quoted(strategy), "; known are prefix and summation"));
  }
  config.expansion_ratio = reader.Integer32("expansion_ratio", 1, kMaxBlockLength);
  if (!reader.ok()) return;
  if (config.strategy == DecodingStrategy::kSummation &&
      config.expansion_ratio != config.block_length) {
    reader.Fail("expansion_ratio",
                absl::StrCat("is ", config.expansion_ratio,
                             "; with summation it must equal block_length ", config.block_length));
  }
}

ModelConfig ReadBlockTransformer(const json& document, absl::string_view source,
                                 absl::Status& status) {
  ModelConfig config;
  config.kind = ModelKind::kBlockTransformer;
  FieldReader top(document, source, "", status);
  config.block_length = top.Integer32("block_length", 1, kMaxBlockLength);
  ReadCommon(top, /*eos_absent=*/0, config);
  config.block = ReadStack(top.Object("block_decoder"), source, "block_decoder.", status);
  FieldReader embedder(top.Object("embedder"), source, "embedder.", status);
  ReadEmbedder(embedder, config);
  const json& token_object = top.Object("token_decoder");
  config.token = ReadStack(token_object, source, "token_decoder.", status);
  FieldReader token(token_object, source, "token_decoder.", status);
  ReadTokenInput(token, config);
  return config;
}

ModelConfig ReadVanilla(const json& document, absl::string_view source, absl::Status& status) {
  ModelConfig config;
  config.kind = ModelKind::kVanilla;
  FieldReader top(document, source, "", status);
  // GPTNeoXConfig's own default for the end-of-text id is 2; it may lie outside of a small V only
  // when the file does not name one, and then the check below says so.
  ReadCommon(top, /*eos_absent=*/2, config);
  // There null is not absent: it is a model without one, and 2 would end its texts at a word.
  if (const auto eos = document.find("eos_token_id"); eos != document.end() && eos->is_null()) {
    top.Fail("eos_token_id", "is null; only models with an end of text are known");
  }
  config.block = ReadStack(document, source, "", status);
  config.block_length = 1;
  config.projection = Projection::kConcat;
  config.embedding_width = config.block.hidden_size;
  config.strategy = DecodingStrategy::kHeadOnly;
  config.expansion_ratio = 0;
  config.token = config.block;
  config.token.num_layers = 0;
  return config;
}

}  // namespace

int64_t TokenPositions(const ModelConfig& config) {
  switch (config.strategy) {
    case DecodingStrategy::kPrefix:  // the last token is an output alone
      return int64_t{config.expansion_ratio} + config.block_length - 1;
    case DecodingStrategy::kSummation:
      return config.block_length;
    case DecodingStrategy::kHeadOnly:
      break;
  }
  return 0;
}

absl::StatusOr<ModelConfig> ParseModelConfig(absl::string_view text, absl::string_view source) {
  absl::StatusOr<json> document = ParseJson(text, source);
  if (!document.ok()) return document.status();
  if (!document->is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(source, ": is ", JsonTypeName(*document), "; an object is needed"));
  }
  absl::Status status;
  FieldReader top(*document, source, "", status);
  const std::string type = top.String("model_type");
  ModelConfig config;
  if (type == "block_transformer") {
    config = ReadBlockTransformer(*document, source, status);
  } else if (type == "gpt_neox") {
    config = ReadVanilla(*document, source, status);
  } else {
    top.Fail("model_type",
             absl::StrCat("is ", Quoted(type), "; known are block_transformer and gpt_neox"));
  }
  if (!status.ok()) return status;
  return config;
}

absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& directory) {
  const std::string path = absl::StrCat(directory, "/config.json");
  absl::StatusOr<std::string> text = ReadFile(path, kMaxConfigBytes);
  if (!text.ok()) return text.status();
  return ParseModelConfig(*text, path);
}

absl::string_view AlignmentName(Alignment alignment) {
  switch (alignment) {
    case Alignment::kEnd:
      return "end";
    case Alignment::kStart:
      return "start";
    case Alignment::kNone:
      return "none";
  }
  return "unknown";
}

absl::StatusOr<Alignment> ParseAlignment(absl::string_view name) {
  for (const Alignment alignment : {Alignment::kEnd, Alignment::kStart, Alignment::kNone}) {
    if (name == AlignmentName(alignment)) return alignment;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("alignment is ", Quoted(name), "; known are end, start and none"));
}

}  // namespace blockserve
