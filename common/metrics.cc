#include "common/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <map>
#include <set>
#include <utility>
#include <vector>

#include "absl/base/optimization.h"
#include "common/mutex.h"

namespace blockserve {
namespace {

constexpr absl::string_view kOther = "other";

prometheus::MetricType TypeOf(MetricKind kind) {
  switch (kind) {
    case MetricKind::kCounter:
      return prometheus::MetricType::Counter;
    case MetricKind::kGauge:
      return prometheus::MetricType::Gauge;
    case MetricKind::kHistogram:
      return prometheus::MetricType::Histogram;
  }
  return prometheus::MetricType::Untyped;
}

// The definition's labels with these values; all "other" where `values` is null.
prometheus::Labels LabelsOf(const MetricDefinition& definition,
                            const MetricRegistry::LabelValues* values) {
  prometheus::Labels labels;
  size_t i = 0;
  for (const absl::string_view name : definition.labels) {
    if (name.empty()) break;
    absl::string_view value = kOther;
    if (values != nullptr) value = i < values->size() ? values->begin()[i] : "";
    labels.emplace(std::string(name), std::string(value));
    ++i;
  }
  return labels;
}

}  // namespace

void MetricCounter::Add(double amount) const {
  if (series_ != nullptr) series_->Increment(amount);
}
double MetricCounter::Value() const { return series_ == nullptr ? 0 : series_->Value(); }
void MetricGauge::Set(double value) const {
  if (series_ != nullptr) series_->Set(value);
}
double MetricGauge::Value() const { return series_ == nullptr ? 0 : series_->Value(); }
void MetricHistogram::Observe(double value) const {
  if (series_ != nullptr) series_->Observe(value);
}

struct MetricRegistry::Impl {
  // What prometheus-cpp keeps of a definition: one of the three.
  struct Family {
    const MetricDefinition* definition = nullptr;
    prometheus::Family<prometheus::Counter>* counters = nullptr;
    prometheus::Family<prometheus::Gauge>* gauges = nullptr;
    prometheus::Family<prometheus::Histogram>* histograms = nullptr;
    std::map<prometheus::Labels, void*> series;  // without that of "other"
  };

  Family& FamilyOf(const MetricDefinition& definition) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    Family& family = families[std::string(definition.name)];
    if (family.definition != nullptr) return family;
    family.definition = &definition;
    const std::string name(definition.name), help(definition.help);
    switch (definition.kind) {
      case MetricKind::kCounter:
        family.counters = &prometheus::BuildCounter().Name(name).Help(help).Register(registry);
        break;
      case MetricKind::kGauge:
        family.gauges = &prometheus::BuildGauge().Name(name).Help(help).Register(registry);
        break;
      case MetricKind::kHistogram:
        family.histograms = &prometheus::BuildHistogram().Name(name).Help(help).Register(registry);
        break;
    }
    return family;
  }

  // `add` makes a series of the family with these labels, or returns the one that is there.
  template <class Series, class Add>
  Series* Resolve(const MetricDefinition& definition, LabelValues values, Add add) {
    MutexLock lock(&mutex);
    Family& family = FamilyOf(definition);
    const prometheus::Labels labels = LabelsOf(definition, &values);
    const auto found = family.series.find(labels);
    if (found != family.series.end()) return static_cast<Series*>(found->second);
    if (static_cast<int32_t>(family.series.size()) >= definition.max_series) {
      return add(family, LabelsOf(definition, nullptr));
    }
    Series* const series = add(family, labels);
    family.series.emplace(labels, series);
    return series;
  }

  std::vector<prometheus::MetricFamily> Collect() const {
    {
      MutexLock lock(&collectors_mutex);
      for (const auto& [id, collect] : collectors) collect();
    }
    std::vector<prometheus::MetricFamily> all = registry.Collect();
    std::set<std::string> told;
    for (const prometheus::MetricFamily& family : all) told.insert(family.name);
    MutexLock lock(&mutex);
    for (const auto& [name, family] : families) {
      if (told.contains(name)) continue;
      all.push_back({name, std::string(family.definition->help), TypeOf(family.definition->kind),
                     /*metric=*/{}});
    }
    return all;
  }

  prometheus::Registry registry;
  mutable Mutex mutex;
  std::map<std::string, Family> families ABSL_GUARDED_BY(mutex);

  mutable Mutex collectors_mutex;
  std::map<uint64_t, std::function<void()>> collectors ABSL_GUARDED_BY(collectors_mutex);
  uint64_t next_collector ABSL_GUARDED_BY(collectors_mutex) = 0;
};

MetricRegistry::MetricRegistry() : impl_(std::make_shared<Impl>()) {}
MetricRegistry::~MetricRegistry() = default;

void MetricRegistry::Declare(absl::Span<const MetricDefinition* const> definitions) {
  MutexLock lock(&impl_->mutex);
  for (const MetricDefinition* definition : definitions) impl_->FamilyOf(*definition);
}

MetricCounter MetricRegistry::Counter(const MetricDefinition& definition, LabelValues values) {
  return MetricCounter(impl_->Resolve<prometheus::Counter>(
      definition, values, [](Impl::Family& family, const prometheus::Labels& labels) {
        return &family.counters->Add(labels);
      }));
}

MetricGauge MetricRegistry::Gauge(const MetricDefinition& definition, LabelValues values) {
  return MetricGauge(impl_->Resolve<prometheus::Gauge>(
      definition, values, [](Impl::Family& family, const prometheus::Labels& labels) {
        return &family.gauges->Add(labels);
      }));
}

MetricHistogram MetricRegistry::Histogram(const MetricDefinition& definition, LabelValues values) {
  return MetricHistogram(impl_->Resolve<prometheus::Histogram>(
      definition, values, [&definition](Impl::Family& family, const prometheus::Labels& labels) {
        return &family.histograms->Add(
            labels, std::vector<double>(definition.buckets.begin(), definition.buckets.end()));
      }));
}

void MetricRegistry::Remove(const MetricDefinition& definition, LabelValues values) {
  MutexLock lock(&impl_->mutex);
  Impl::Family& family = impl_->FamilyOf(definition);
  const auto found = family.series.find(LabelsOf(definition, &values));
  if (found == family.series.end()) return;
  switch (definition.kind) {
    case MetricKind::kCounter:
      family.counters->Remove(static_cast<prometheus::Counter*>(found->second));
      break;
    case MetricKind::kGauge:
      family.gauges->Remove(static_cast<prometheus::Gauge*>(found->second));
      break;
    case MetricKind::kHistogram:
      family.histograms->Remove(static_cast<prometheus::Histogram*>(found->second));
      break;
  }
  family.series.erase(found);
}

std::shared_ptr<void> MetricRegistry::OnCollect(std::function<void()> collect) {
  MutexLock lock(&impl_->collectors_mutex);
  const uint64_t id = impl_->next_collector++;
  impl_->collectors.emplace(id, std::move(collect));
  return std::shared_ptr<void>(nullptr, [impl = impl_, id](void*) {
    MutexLock lock(&impl->collectors_mutex);
    impl->collectors.erase(id);
  });
}

std::string MetricRegistry::RenderText() {
  return prometheus::TextSerializer().Serialize(impl_->Collect());
}

}  // namespace blockserve
