#include "gateway/known_fields.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/unknown_field_set.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "blockserve/v1/generation.pb.h"

namespace blockserve {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

// `path`: of `message` within the request, with a dot at its end; empty for the request itself.
absl::Status Check(const Message& message, const std::string& path) {
  const google::protobuf::Reflection& reflection = *message.GetReflection();
  const google::protobuf::UnknownFieldSet& unknown = reflection.GetUnknownFields(message);
  if (!unknown.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, unknown.field(0).number(),
                     ": this gateway does not know the field of this number; the client is newer, "
                     "upgrade the gateway"));
  }
  std::vector<const FieldDescriptor*> fields;
  reflection.ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) continue;
    if (field->message_type() == v1::Started::descriptor()) continue;
    const int count = field->is_repeated() ? reflection.FieldSize(message, field) : 1;
    const std::string inner = absl::StrCat(path, field->name(), ".");
    for (int i = 0; i < count; ++i) {
      const Message& part = field->is_repeated() ? reflection.GetRepeatedMessage(message, field, i)
                                                 : reflection.GetMessage(message, field);
      if (absl::Status status = Check(part, inner); !status.ok()) return status;
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckFieldsAreKnown(const Message& request) { return Check(request, ""); }

}  // namespace blockserve
