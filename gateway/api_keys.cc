#include "gateway/api_keys.h"

#include <openssl/crypto.h>
#include <openssl/rand.h>
#include <openssl/sha.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "common/json.h"
#include "common/logging.h"
#include "common/read_file.h"
#include "gateway/admission.h"

namespace blockserve {
namespace {

using Json = nlohmann::json;

constexpr absl::string_view kPrefix = "bsk_";
constexpr size_t kIdHex = 8;
constexpr size_t kSecretBytes = 32;
constexpr size_t kSaltBytes = 16;
constexpr size_t kMaxKeyBytes = 128;
constexpr size_t kMaxNameBytes = 64;
constexpr absl::Duration kLookInterval = absl::Seconds(1);
constexpr char kSharedCache[] = "shared";
constexpr char kOwnCache[] = "own";
constexpr std::array<absl::string_view, 3> kPriorities = {"high", "normal", "batch"};

std::string Hash(absl::string_view salt, absl::string_view key) {
  const std::string input = absl::StrCat(salt, key);
  std::string hash(SHA256_DIGEST_LENGTH, '\0');
  SHA256(reinterpret_cast<const unsigned char*>(input.data()), input.size(),
         reinterpret_cast<unsigned char*>(hash.data()));
  return hash;
}

bool IsHex(absl::string_view text, size_t size) {
  if (text.size() != size) return false;
  for (const char c : text) {
    if (!absl::ascii_isxdigit(static_cast<unsigned char>(c))) return false;
  }
  return true;
}

// One line of the file, field by field; the first thing that is wrong stays.
class Line {
 public:
  explicit Line(Json json) : json_(std::move(json)) {}

  std::string Text(const char* name) {
    const Json* value = Take(name);
    if (value == nullptr || !value->is_string()) return Fail(name, "must be a text"), "";
    return value->get<std::string>();
  }
  std::string Bytes(const char* name, size_t bytes) {
    const std::string text = Text(name);
    if (!IsHex(text, 2 * bytes)) Fail(name, absl::StrCat("must be ", 2 * bytes, " hex digits"));
    return absl::HexStringToBytes(IsHex(text, 2 * bytes) ? text : std::string(2 * bytes, '0'));
  }
  double Number(const char* name, double otherwise, double least, double most, bool whole) {
    const Json* value = Take(name);
    if (value == nullptr) return otherwise;
    const double number = value->is_number() ? value->get<double>() : -1;
    if (!(number >= least && number <= most) || (whole && number != std::floor(number))) {
      Fail(name,
           absl::StrCat("must be a ", whole ? "whole " : "", "number from ", least, " to ", most));
      return otherwise;
    }
    return number;
  }
  uint32_t Priority(const char* name) {
    const Json* value = Take(name);
    if (value == nullptr) return 1;
    for (uint32_t i = 0; i < kPriorities.size(); ++i) {
      if (value->is_string() && value->get<std::string>() == kPriorities[i]) return i + 1;
    }
    Fail(name, "must be high, normal or batch");
    return 1;
  }
  bool OwnPrefixCache(const char* name) {
    const Json* value = Take(name);
    if (value == nullptr || *value == kSharedCache) return false;
    if (*value != kOwnCache) Fail(name, "must be shared or own");
    return true;
  }
  void Fail(absl::string_view name, absl::string_view what) {
    if (status_.ok()) {
      status_ = absl::InvalidArgumentError(absl::StrCat("\"", name, "\" ", what));
    }
  }
  // After all fields were taken: what is left is a mistake, perhaps in a limit's name.
  absl::Status status() {
    if (!json_.empty()) Fail(json_.begin().key(), "is not known");
    return status_;
  }

 private:
  const Json* Take(const char* name) {
    const auto found = json_.find(name);
    if (found == json_.end()) return nullptr;
    taken_ = *found;
    json_.erase(found);
    return &taken_;
  }
  Json json_;
  Json taken_;
  absl::Status status_;
};

absl::StatusOr<std::pair<std::string, ApiKey>> ParseLine(absl::string_view text) {
  absl::StatusOr<Json> json = ParseJson(text, "");
  if (!json.ok()) return json.status();
  if (!json->is_object()) return absl::InvalidArgumentError("is no JSON object");
  Line line(*std::move(json));
  ApiKey key;
  const std::string id = line.Text("id");
  if (!IsHex(id, kIdHex)) line.Fail("id", absl::StrCat("must be ", kIdHex, " hex digits"));
  key.name = line.Text("name");
  if (key.name.empty() || key.name.size() > kMaxNameBytes) {
    line.Fail("name", absl::StrCat("must have 1 to ", kMaxNameBytes, " bytes"));
  }
  key.salt = line.Bytes("salt", kSaltBytes);
  key.hash = line.Bytes("sha256", SHA256_DIGEST_LENGTH);
  ApiKeyLimits& limits = key.limits;
  limits.max_requests = static_cast<int32_t>(line.Number("max_requests", 0, 0, 1e9, true));
  limits.max_tokens = static_cast<int64_t>(line.Number("max_tokens", 0, 0, 1e15, true));
  limits.requests_per_second = line.Number("requests_per_second", 0, 0, 1e9, false);
  limits.burst = static_cast<int32_t>(line.Number("burst", 0, 0, 1e9, true));
  limits.weight = line.Number("weight", 1, KeyLimits::kLeastWeight, KeyLimits::kMostWeight, false);
  limits.highest_priority = line.Priority("highest_priority");
  limits.own_prefix_cache = line.OwnPrefixCache("prefix_cache");
  if (absl::Status status = line.status(); !status.ok()) return status;
  return std::pair(absl::AsciiStrToLower(id), std::move(key));
}

absl::StatusOr<std::string> RandomBytes(size_t size) {
  std::string bytes(size, '\0');
  if (RAND_bytes(reinterpret_cast<unsigned char*>(bytes.data()), static_cast<int>(size)) != 1) {
    return absl::InternalError("OpenSSL gives no random bytes");
  }
  return bytes;
}

}  // namespace

absl::StatusOr<ApiKeyTable> ApiKeyTable::Parse(absl::string_view text) {
  ApiKeyTable table;
  int number = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    line = absl::StripAsciiWhitespace(line);
    if (line.empty() || line.front() == '#') continue;
    absl::StatusOr<std::pair<std::string, ApiKey>> parsed = ParseLine(line);
    if (!parsed.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("line ", number, ": ", parsed.status().message()));
    }
    auto& [id, key] = *parsed;
    ApiKeyLimits& of_name = table.limits_.try_emplace(key.name, key.limits).first->second;
    of_name.own_prefix_cache |= key.limits.own_prefix_cache;
    if (!table.keys_.try_emplace(id, std::move(key)).second) {
      return absl::InvalidArgumentError(absl::StrCat("line ", number, ": there is another ", id));
    }
  }
  return table;
}

absl::StatusOr<const ApiKey*> ApiKeyTable::Find(absl::string_view key) const {
  static const std::string* const kNoSalt = new std::string(kSaltBytes, '\0');
  static const std::string* const kNoHash = new std::string(SHA256_DIGEST_LENGTH, '\0');
  absl::string_view rest = key.substr(0, kMaxKeyBytes);
  const ApiKey* found = nullptr;
  if (absl::ConsumePrefix(&rest, kPrefix) && rest.size() > kIdHex && rest[kIdHex] == '_') {
    const auto entry = keys_.find(absl::AsciiStrToLower(rest.substr(0, kIdHex)));
    if (entry != keys_.end()) found = &entry->second;
  }
  // Hashed and compared in any case, and to the last byte.
  const std::string hash =
      Hash(found == nullptr ? *kNoSalt : found->salt, key.substr(0, kMaxKeyBytes));
  const std::string& expected = found == nullptr ? *kNoHash : found->hash;
  const bool equal = CRYPTO_memcmp(hash.data(), expected.data(), hash.size()) == 0;
  if (!equal || found == nullptr || key.size() > kMaxKeyBytes) {
    return absl::UnauthenticatedError("the API key is not known here");
  }
  return found;
}

const ApiKeyLimits* ApiKeyTable::Limits(absl::string_view name) const {
  const auto found = limits_.find(name);
  return found == limits_.end() ? nullptr : &found->second;
}

absl::StatusOr<NewApiKey> MakeApiKey(absl::string_view name, const ApiKeyLimits& limits) {
  absl::StatusOr<std::string> id = RandomBytes(kIdHex / 2);
  absl::StatusOr<std::string> secret = RandomBytes(kSecretBytes);
  absl::StatusOr<std::string> salt = RandomBytes(kSaltBytes);
  for (const auto* bytes : {&id, &secret, &salt}) {
    if (!bytes->ok()) return bytes->status();
  }
  NewApiKey made;
  const std::string id_hex = absl::BytesToHexString(*id);
  made.key = absl::StrCat(kPrefix, id_hex, "_", absl::WebSafeBase64Escape(*secret));
  nlohmann::ordered_json line;
  line["id"] = id_hex;
  line["name"] = std::string(name);
  line["salt"] = absl::BytesToHexString(*salt);
  line["sha256"] = absl::BytesToHexString(Hash(*salt, made.key));
  if (limits.max_requests != 0) line["max_requests"] = limits.max_requests;
  if (limits.max_tokens != 0) line["max_tokens"] = limits.max_tokens;
  if (limits.requests_per_second != 0) line["requests_per_second"] = limits.requests_per_second;
  if (limits.burst != 0) line["burst"] = limits.burst;
  if (limits.weight != 1) line["weight"] = limits.weight;
  if (limits.highest_priority != 1) {
    line["highest_priority"] = std::string(kPriorities[limits.highest_priority - 1]);
  }
  if (limits.own_prefix_cache) line["prefix_cache"] = kOwnCache;
  made.line = line.dump(-1, ' ', false, Json::error_handler_t::replace);
  // What was asked for is what the file's reader takes, or its words say what is wrong.
  if (auto read = ParseLine(made.line); !read.ok()) return read.status();
  return made;
}

absl::StatusOr<std::unique_ptr<ApiKeys>> ApiKeys::Load(const std::string& path,
                                                       absl::string_view flag) {
  std::unique_ptr<ApiKeys> keys(new ApiKeys(path, std::string(flag)));
  const absl::StatusOr<std::string> text = ReadFile(path);
  absl::StatusOr<std::shared_ptr<const ApiKeyTable>> table = keys->Parse(text);
  if (!table.ok()) return table.status();
  MutexLock lock(&keys->mutex_);
  keys->table_ = *std::move(table);
  keys->text_ = text;
  keys->looked_at_ = absl::Now();
  return keys;
}

absl::StatusOr<std::shared_ptr<const ApiKeyTable>> ApiKeys::Parse(
    const absl::StatusOr<std::string>& text) const {
  const auto fail = [&](absl::string_view why) {
    return absl::InvalidArgumentError(absl::StrCat(flag_, " ", path_, ": ", why));
  };
  if (!text.ok()) return fail(text.status().message());
  absl::StatusOr<ApiKeyTable> table = ApiKeyTable::Parse(*text);
  if (!table.ok()) return fail(table.status().message());
  return std::make_shared<const ApiKeyTable>(*std::move(table));
}

std::shared_ptr<const ApiKeyTable> ApiKeys::Current() {
  MutexLock lock(&mutex_);
  const absl::Time now = absl::Now();
  if (now - looked_at_ < kLookInterval && now >= looked_at_) return table_;
  looked_at_ = now;
  // By what it holds: the time of a file that was put in place of another may be the same, and so
  // it may be where one is written in two pieces.
  absl::StatusOr<std::string> text = ReadFile(path_);
  if (text == text_) return table_;  // what cannot be read is told once
  text_ = std::move(text);
  absl::StatusOr<std::shared_ptr<const ApiKeyTable>> table = Parse(text_);
  if (table.ok()) {
    table_ = *std::move(table);
    LogInfo(absl::StrCat(flag_, " ", path_, ": ", table_->size(), " keys"));
  } else {
    LogError(absl::StrCat("the keys stay as they were: ", table.status().message()));
  }
  return table_;
}

absl::StatusOr<std::string> ApiKeys::Authenticate(absl::string_view key) {
  const std::shared_ptr<const ApiKeyTable> table = Current();
  const absl::StatusOr<const ApiKey*> found = table->Find(key);
  if (!found.ok()) return found.status();
  return (*found)->name;
}

absl::StatusOr<std::string> ApiKeys::AuthenticateHeader(absl::string_view authorization) {
  constexpr absl::string_view kBearer = "Bearer ";
  if (!absl::StartsWithIgnoreCase(authorization, kBearer)) {
    return absl::UnauthenticatedError("an API key is needed: authorization: Bearer KEY");
  }
  return Authenticate(absl::StripAsciiWhitespace(authorization.substr(kBearer.size())));
}

absl::Status ApiKeys::CheckPriority(absl::string_view name, uint32_t priority) {
  const uint32_t highest = Limits(name).highest_priority;
  if (priority >= highest) return absl::OkStatus();
  return absl::PermissionDeniedError(
      absl::StrCat("priority: this key may ask for ", kPriorities[highest - 1], " at most"));
}

uint32_t ApiKeys::DefaultPriority(absl::string_view name) {
  constexpr uint32_t kNormal = 2;
  return std::max(kNormal, Limits(name).highest_priority);
}

bool ApiKeys::OwnsPrefixCache(absl::string_view name) {
  const std::shared_ptr<const ApiKeyTable> table = Current();
  const ApiKeyLimits* limits = table->Limits(name);
  return limits == nullptr || limits->own_prefix_cache;
}

ApiKeyLimits ApiKeys::Limits(absl::string_view name) {
  const std::shared_ptr<const ApiKeyTable> table = Current();
  const ApiKeyLimits* limits = table->Limits(name);
  return limits == nullptr ? ApiKeyLimits() : *limits;
}

}  // namespace blockserve
