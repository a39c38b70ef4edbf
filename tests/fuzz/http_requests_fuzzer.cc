// The way of an HTTP request up to the core, of any bytes: from the connection's pieces through the
// parser, JSON and validation. What is refused is refused in OpenAI's form.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/utf8.h"
#include "gateway/http/chat_format.h"
#include "gateway/http/openai_answer.h"
#include "gateway/http/openai_request.h"
#include "gateway/validate.h"
#include "rpc/http/request_reader.h"

namespace blockserve {
namespace {

void Require(bool holds) {
  if (!holds) __builtin_trap();
}

void CheckRefusal(const absl::Status& status) {
  const HttpResponse response = OpenAiError(status);
  Require(response.status >= 400 && response.status < 500);
  const nlohmann::json body = nlohmann::json::parse(response.body, nullptr, false);
  Require(body.is_object() && body["error"]["message"].is_string());
}

void CheckBody(absl::string_view body, bool chat) {
  static const RequestValidator* const validator = [] {
    ModelConfig config;
    config.block_length = 4;
    config.vocab_size = 512;
    config.block.max_positions = 64;
    return new RequestValidator(config, nullptr, ValidatorOptions{"m", false});
  }();
  absl::StatusOr<HttpCompletion> parsed = ParseCompletion(body, chat);
  if (!parsed.ok()) return CheckRefusal(parsed.status());
  Require(chat ? !parsed->messages.empty() : !parsed->prompts.empty());
  Require(parsed->prompts.size() <= kMaxHttpPrompts);
  for (const HttpPrompt& prompt : parsed->prompts) {
    v1::GenerateRequest request = parsed->request;
    if (prompt.text.has_value()) Require(IsValidUtf8(*prompt.text));
    Require(prompt.text.has_value() != prompt.ids.has_value());
    v1::TokenIds& tokens = *request.mutable_tokens();
    if (prompt.ids.has_value()) tokens.mutable_ids()->Add(prompt.ids->begin(), prompt.ids->end());
    if (parsed->max_tokens.has_value()) request.mutable_stop()->set_max_tokens(*parsed->max_tokens);
    const auto generation = validator->Generation(request, "", absl::InfiniteFuture());
    if (!generation.ok()) CheckRefusal(generation.status());
  }
}

}  // namespace
}  // namespace blockserve

// Of the first byte: the size of the pieces in which the rest arrives; 0: it is a body by itself.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using blockserve::HttpRequestReader;
  if (size == 0) return 0;
  absl::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  const size_t piece = data[0];
  if (piece == 0) {
    blockserve::CheckBody(bytes, false);
    blockserve::CheckBody(bytes, true);
    if (const auto format = blockserve::ChatFormat::Parse(bytes, "f"); !format.ok()) {
      blockserve::CheckRefusal(format.status());
    }
    return 0;
  }
  HttpRequestReader reader({/*max_header_bytes=*/1024, /*max_body_bytes=*/4096});
  while (!bytes.empty() && reader.state() != HttpRequestReader::State::kDone &&
         reader.state() != HttpRequestReader::State::kFailed) {
    reader.Feed(bytes.substr(0, piece));
    bytes.remove_prefix(std::min(piece, bytes.size()));
  }
  if (reader.state() == HttpRequestReader::State::kFailed) {
    blockserve::Require(reader.failure_status() >= 400 && reader.failure_status() <= 505);
  }
  if (reader.state() != HttpRequestReader::State::kDone) return 0;
  blockserve::Require(reader.request().body.size() <= 4096);
  size_t header_bytes = 0;
  for (const auto& field : reader.request().fields) {
    header_bytes += field.name_string().size() + field.value().size();
  }
  blockserve::Require(header_bytes <= 1024);
  blockserve::CheckBody(reader.request().body, reader.request().path.size() % 2 == 1);
  return 0;
}
