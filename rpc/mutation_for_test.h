// Seeded damage for tests of the services: messages whose fields or bytes have been changed at
// random, and a client that sends bytes as they are.
#ifndef BLOCKSERVE_RPC_MUTATION_FOR_TEST_H_
#define BLOCKSERVE_RPC_MUTATION_FOR_TEST_H_

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cstdint>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace blockserve {

class Mutator {
 public:
  explicit Mutator(uint32_t seed) : random_(seed) {}

  uint32_t Below(uint32_t bound) { return random_() % bound; }

  std::string Bytes(size_t max_size) {
    std::string bytes(Below(max_size + 1), '\0');
    for (char& byte : bytes) byte = static_cast<char>(random_());
    return bytes;
  }

  // Flips, inserts, removes, repeats or cuts off bytes, a few times.
  void MutateBytes(std::string& bytes) {
    for (uint32_t times = 1 + Below(4); times > 0; --times) {
      const size_t at = bytes.empty() ? 0 : Below(bytes.size());
      switch (Below(5)) {
        case 0:
          if (!bytes.empty()) bytes[at] = static_cast<char>(bytes[at] ^ (1u << Below(8)));
          break;
        case 1:
          bytes.insert(at, Bytes(8));
          break;
        case 2:
          bytes.erase(at, Below(16));
          break;
        case 3:
          bytes.insert(at, bytes.substr(at, Below(64)));
          break;
        default:
          if (Below(4) == 0) bytes.resize(at);
      }
    }
  }

  // Changes one field somewhere in the message; the result is well-formed protobuf.
  void MutateField(google::protobuf::Message& message) {
    const google::protobuf::Descriptor& type = *message.GetDescriptor();
    const google::protobuf::Reflection& reflection = *message.GetReflection();
    if (type.field_count() == 0) return;
    const google::protobuf::FieldDescriptor* field = type.field(Below(type.field_count()));
    using Field = google::protobuf::FieldDescriptor;
    if (field->is_repeated()) {
      const int size = reflection.FieldSize(message, field);
      const uint32_t what = Below(6);
      if (size > 0 && what == 0) {
        reflection.RemoveLast(&message, field);
      } else if (size > 1 && what == 1) {
        reflection.SwapElements(&message, field, Below(size), Below(size));
      } else if (field->cpp_type() == Field::CPPTYPE_MESSAGE) {
        if (size == 0 || what == 2) reflection.AddMessage(&message, field);
        MutateField(*reflection.MutableRepeatedMessage(
            &message, field, Below(reflection.FieldSize(message, field))));
      } else if (field->cpp_type() == Field::CPPTYPE_INT32) {
        if (size == 0 || what == 2) reflection.AddInt32(&message, field, Int32());
        reflection.SetRepeatedInt32(&message, field, Below(reflection.FieldSize(message, field)),
                                    Int32());
      } else if (field->cpp_type() == Field::CPPTYPE_UINT64) {
        reflection.AddUInt64(&message, field, Below(100));
      }
      return;
    }
    switch (field->cpp_type()) {
      case Field::CPPTYPE_MESSAGE:
        if (Below(8) == 0) {
          reflection.ClearField(&message, field);
        } else {
          MutateField(*reflection.MutableMessage(&message, field));
        }
        break;
      case Field::CPPTYPE_INT32:
        reflection.SetInt32(&message, field, Int32());
        break;
      case Field::CPPTYPE_INT64:
        reflection.SetInt64(&message, field, Int64());
        break;
      case Field::CPPTYPE_UINT32:
        reflection.SetUInt32(&message, field, static_cast<uint32_t>(Int32()));
        break;
      case Field::CPPTYPE_UINT64:
        reflection.SetUInt64(&message, field,
                             Below(2) == 0 ? Below(100) : static_cast<uint64_t>(Int64()));
        break;
      case Field::CPPTYPE_FLOAT:
        reflection.SetFloat(&message, field, Float());
        break;
      case Field::CPPTYPE_BOOL:
        reflection.SetBool(&message, field, Below(2) == 0);
        break;
      case Field::CPPTYPE_ENUM:
        reflection.SetEnumValue(&message, field, static_cast<int>(Below(5)));
        break;
      case Field::CPPTYPE_STRING: {
        std::string value = reflection.GetString(message, field);
        MutateBytes(value);
        // Text must be UTF-8 for the message to be sent at all.
        if (field->type() == Field::TYPE_STRING) {
          for (char& byte : value) byte = static_cast<char>(byte & 0x7f);
        }
        reflection.SetString(&message, field, std::move(value));
        break;
      }
      default:
        break;
    }
  }

 private:
  int32_t Int32() {
    switch (Below(8)) {
      case 0:
        return std::numeric_limits<int32_t>::max();
      case 1:
        return std::numeric_limits<int32_t>::min();
      case 2:
        return -1;
      case 3:
        return 0;
      case 4:
        return static_cast<int32_t>(random_());
      default:
        return static_cast<int32_t>(Below(600));
    }
  }
  int64_t Int64() {
    switch (Below(4)) {
      case 0:
        return std::numeric_limits<int64_t>::max() - Below(3);
      case 1:
        return std::numeric_limits<int64_t>::min() + Below(3);
      default:
        return Int32();
    }
  }
  float Float() {
    constexpr float kInteresting[] = {std::numeric_limits<float>::quiet_NaN(),
                                      std::numeric_limits<float>::infinity(),
                                      -std::numeric_limits<float>::infinity(),
                                      -1.0f,
                                      0.0f,
                                      -0.0f,
                                      1e-38f,
                                      3e38f,
                                      0.5f,
                                      1.0f,
                                      2.0f};
    return kInteresting[Below(std::size(kInteresting))];
  }

  std::mt19937 random_;
};

// Sends `messages` as they are on one stream of `method` ("/package.Service/Method"), ends its
// side, and reads to the end. Returns how the stream ended; DEADLINE_EXCEEDED means that it hung.
inline grpc::Status SendBytes(const std::shared_ptr<grpc::Channel>& channel,
                              const std::string& method, const std::vector<std::string>& messages) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(1));
  grpc::CompletionQueue queue;
  // One operation at a time.
  const auto wait = [&queue] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  auto call = stub.PrepareCall(&context, method, &queue);
  call->StartCall(nullptr);
  bool alive = wait();
  for (const std::string& message : messages) {
    if (!alive) break;
    const grpc::Slice slice(message);
    call->Write(grpc::ByteBuffer(&slice, 1), nullptr);
    alive = wait();
  }
  if (alive) {
    call->WritesDone(nullptr);
    alive = wait();
  }
  grpc::ByteBuffer reply;
  do {
    call->Read(&reply, nullptr);
  } while (wait());
  grpc::Status status;
  call->Finish(&status, nullptr);
  wait();
  queue.Shutdown();
  void* tag = nullptr;
  bool ok = false;
  while (queue.Next(&tag, &ok)) {
  }
  return status;
}

}  // namespace blockserve

#endif  // BLOCKSERVE_RPC_MUTATION_FOR_TEST_H_
