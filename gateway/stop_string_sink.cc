#include "gateway/stop_string_sink.h"

#include <utility>

namespace blockserve {
namespace {

class StopStringSink final : public GenerationSink {
 public:
  explicit StopStringSink(std::shared_ptr<GenerationSink> sink) : sink_(std::move(sink)) {}

  void OnStarted(v1::Started started) override { sink_->OnStarted(std::move(started)); }
  void OnOutput(v1::Output output, OutputDetail detail) override {
    sink_->OnOutput(std::move(output), std::move(detail));
  }
  void OnFinished(v1::Finished finished) override {
    finished.mutable_text()->append(finished.stop_string());
    sink_->OnFinished(std::move(finished));
  }
  void OnDone(absl::Status status, v1::Usage usage) override {
    sink_->OnDone(std::move(status), std::move(usage));
  }
  bool WantsMore() const override { return sink_->WantsMore(); }

 private:
  const std::shared_ptr<GenerationSink> sink_;
};

}  // namespace

std::shared_ptr<GenerationSink> WithStopStrings(std::shared_ptr<GenerationSink> sink,
                                                const GenerationRequest& request) {
  if (!request.include_stop_string || request.stop_strings.empty()) return sink;
  return std::make_shared<StopStringSink>(std::move(sink));
}

}  // namespace blockserve
