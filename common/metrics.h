// Prometheus metrics: what a program counts and measures, for an operator's scraper.
//
// Each folder has one header of constexpr definitions (gateway/metric_definitions.h, …) and a list
// of them. A program passes one registry to its parts; each part resolves its series to handles
// when it is made, so that counting is an atomic addition. Names follow Prometheus' convention: the
// unit at the end (_seconds, _bytes), _total after what only grows.
#ifndef BLOCKSERVE_COMMON_METRICS_H_
#define BLOCKSERVE_COMMON_METRICS_H_

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace prometheus {
class Counter;
class Gauge;
class Histogram;
}  // namespace prometheus

namespace blockserve {

enum class MetricKind { kCounter, kGauge, kHistogram };

// Metrics without labels have one series. Those with labels have at most `max_series`: what comes
// after is counted in one more, whose every label is "other".
struct MetricDefinition {
  MetricKind kind;
  absl::string_view name;
  absl::string_view help;
  absl::string_view labels[2] = {};       // names; empty: fewer
  int32_t max_series = 1;                 // beside that of "other"
  absl::Span<const double> buckets = {};  // upper bounds, rising; histograms only
};

// From half a millisecond to ten minutes.
inline constexpr double kLatencyBucketsSeconds[] = {0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
                                                    0.1,    0.25,  0.5,    1,     2.5,  5,     10,
                                                    30,     60,    120,    300,   600};
// Steps of an engine, gaps between tokens: from 50 microseconds to ten seconds.
inline constexpr double kStepBucketsSeconds[] = {0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025,
                                                 0.005,   0.01,   0.025,   0.05,   0.1,   0.25,
                                                 0.5,     1,      2.5,     10};
// Rows, blocks or sequences of a batch.
inline constexpr double kBatchBuckets[] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096};

// Handles: cheap to copy, thread-safe, valid as long as their registry. One that was made by the
// default constructor counts nothing: parts work without a registry.
class MetricCounter {
 public:
  MetricCounter() = default;
  void Add(double amount = 1) const;  // not negative
  double Value() const;

 private:
  friend class MetricRegistry;
  explicit MetricCounter(prometheus::Counter* series) : series_(series) {}
  prometheus::Counter* series_ = nullptr;
};

class MetricGauge {
 public:
  MetricGauge() = default;
  void Set(double value) const;
  double Value() const;

 private:
  friend class MetricRegistry;
  explicit MetricGauge(prometheus::Gauge* series) : series_(series) {}
  prometheus::Gauge* series_ = nullptr;
};

class MetricHistogram {
 public:
  MetricHistogram() = default;
  void Observe(double value) const;

 private:
  friend class MetricRegistry;
  explicit MetricHistogram(prometheus::Histogram* series) : series_(series) {}
  prometheus::Histogram* series_ = nullptr;
};

// Thread-safe. Definitions must outlive it (they are constants); it must outlive its handles' use.
class MetricRegistry {
 public:
  using LabelValues = std::initializer_list<absl::string_view>;

  MetricRegistry();
  ~MetricRegistry();
  MetricRegistry(const MetricRegistry&) = delete;
  MetricRegistry& operator=(const MetricRegistry&) = delete;

  // These are told, with help and type, before they have a series.
  void Declare(absl::Span<const MetricDefinition* const> definitions);

  // The series of these label values, one for each label of the definition; made where it is new.
  // The definition is declared by this too.
  MetricCounter Counter(const MetricDefinition& definition, LabelValues values = {});
  MetricGauge Gauge(const MetricDefinition& definition, LabelValues values = {});
  MetricHistogram Histogram(const MetricDefinition& definition, LabelValues values = {});

  // Forgets a series (of a worker that has gone); its handles must not be used again. That of
  // "other" stays.
  void Remove(const MetricDefinition& definition, LabelValues values);

  // Called before each look at the metrics, on the thread that looks: for gauges that are read
  // elsewhere. Not called any more once what this returns has been destroyed.
  [[nodiscard]] std::shared_ptr<void> OnCollect(std::function<void()> collect);

  // Prometheus' text format, version 0.0.4.
  std::string RenderText();

 private:
  struct Impl;
  const std::shared_ptr<Impl> impl_;
};

// Content-Type of RenderText's answer.
inline constexpr absl::string_view kMetricsContentType = "text/plain; version=0.0.4; charset=utf-8";

}  // namespace blockserve

#endif  // BLOCKSERVE_COMMON_METRICS_H_
