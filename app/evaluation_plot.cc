#include "app/evaluation_plot.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"

namespace blockserve {
namespace {

using nlohmann::ordered_json;

constexpr double kWidth = 960, kPanelTop = 64, kPanelHeight = 250;
constexpr double kPanelWidth = 390, kLeftPanel = 60, kRightPanel = 540;
constexpr double kLegendLine = 20;
// Distinct also in print and for the colour-blind.
constexpr std::array<const char*, 6> kColours = {"#0072b2", "#d55e00", "#009e73",
                                                 "#cc79a7", "#e69f00", "#555555"};

struct Point {
  std::string label;  // under the axis
  double loss = 0;
  double tokens = 0;
};

struct Scale {
  double low = 0, high = 1, step = 1;
  double Y(double value) const {
    return kPanelTop + kPanelHeight * (1 - (value - low) / (high - low));
  }
};

std::string Escape(const std::string& text) {
  return absl::StrReplaceAll(text,
                             {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}});
}

const char* Colour(size_t series) { return kColours[series % kColours.size()]; }

std::vector<Point> Points(const ordered_json& json, const char* list, const char* key) {
  std::vector<Point> points;
  for (const ordered_json& entry : json[list]) {
    const int64_t at = entry[key].get<int64_t>();
    points.push_back(
        {absl::StrCat(at), entry["loss"].get<double>(), entry["tokens"].get<double>()});
  }
  return points;
}

// Round steps around all the values that are to be shown.
Scale FitScale(const std::vector<std::vector<Point>>& series, bool from_zero) {
  double low = 1e300, high = -1e300;
  for (const std::vector<Point>& points : series) {
    for (const Point& point : points) {
      if (point.tokens == 0) continue;
      low = std::min(low, point.loss);
      high = std::max(high, point.loss);
    }
  }
  if (low > high) low = high = 0;
  if (from_zero) low = 0;
  const double span = std::max(high - low, 0.1);
  double step = std::pow(10, std::floor(std::log10(span / 4)));
  for (const double factor : {5.0, 2.0}) {
    if (span / (step * factor) >= 4) {
      step *= factor;
      break;
    }
  }
  Scale scale;
  scale.step = step;
  scale.low = std::floor(low / step) * step;
  scale.high = std::ceil((high + 0.02 * span) / step) * step;
  if (scale.high <= scale.low) scale.high = scale.low + step;
  return scale;
}

void Text(std::string& svg, double x, double y, const char* anchor, const std::string& text,
          const char* more = "") {
  absl::StrAppendFormat(&svg, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" %s>%s</text>\n", x, y,
                        anchor, more, Escape(text));
}

void Axes(std::string& svg, double left, const Scale& scale, const std::string& title,
          const std::string& below) {
  Text(svg, left, kPanelTop - 14, "start", title, "font-weight=\"bold\"");
  const int steps = static_cast<int>(std::lround((scale.high - scale.low) / scale.step));
  const int decimals = scale.step >= 1 ? 0 : scale.step >= 0.1 ? 1 : scale.step >= 0.01 ? 2 : 3;
  for (int i = 0; i <= steps; ++i) {
    const double value = scale.low + i * scale.step;
    absl::StrAppendFormat(&svg,
                          "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" "
                          "stroke=\"#dddddd\"/>\n",
                          left, scale.Y(value), left + kPanelWidth, scale.Y(value));
    Text(svg, left - 8, scale.Y(value) + 4, "end", absl::StrFormat("%.*f", decimals, value));
  }
  absl::StrAppendFormat(&svg,
                        "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" "
                        "stroke=\"#333333\"/>\n",
                        left, kPanelTop + kPanelHeight, left + kPanelWidth,
                        kPanelTop + kPanelHeight);
  Text(svg, left + kPanelWidth / 2, kPanelTop + kPanelHeight + 40, "middle", below);
}

// Bars side by side, a group for each position. A model with one position has the same loss
// everywhere: a line through the whole panel says so.
void Bars(std::string& svg, double left, const std::vector<std::vector<Point>>& series,
          const Scale& scale) {
  size_t groups = 0;
  double bars = 0;
  for (const std::vector<Point>& points : series) {
    groups = std::max(groups, points.size());
    if (points.size() > 1 || series.size() == 1) ++bars;
  }
  if (groups == 0) return;
  const double group_width = kPanelWidth / static_cast<double>(groups);
  double bar = 0;
  for (size_t s = 0; s < series.size(); ++s) {
    const bool line = series[s].size() == 1 && series.size() > 1;
    for (size_t i = 0; i < series[s].size(); ++i) {
      const Point& point = series[s][i];
      if (point.tokens == 0) continue;
      const std::string hint = Escape(absl::StrFormat("position %s: loss %.4f over %.0f tokens",
                                                      point.label, point.loss, point.tokens));
      if (line) {
        absl::StrAppendFormat(&svg,
                              "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" "
                              "stroke=\"%s\" stroke-width=\"2\" stroke-dasharray=\"6 4\">"
                              "<title>%s</title></line>\n",
                              left, scale.Y(point.loss), left + kPanelWidth, scale.Y(point.loss),
                              Colour(s), hint);
        continue;
      }
      const double width = 0.8 * group_width / std::max(bars, 1.0);
      const double x = left + (static_cast<double>(i) + 0.1) * group_width + bar * width;
      absl::StrAppendFormat(&svg,
                            "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" "
                            "fill=\"%s\"><title>%s</title></rect>\n",
                            x, scale.Y(point.loss), std::max(width - 1, 0.5),
                            kPanelTop + kPanelHeight - scale.Y(point.loss), Colour(s), hint);
      if (width > 30) {
        Text(svg, x + width / 2, scale.Y(point.loss) - 4, "middle",
             absl::StrFormat("%.2f", point.loss), "font-size=\"11\"");
      }
    }
    if (!line) ++bar;
  }
  for (size_t i = 0; i < groups; ++i) {
    Text(svg, left + (static_cast<double>(i) + 0.5) * group_width, kPanelTop + kPanelHeight + 18,
         "middle", absl::StrCat(i));
  }
}

// Lines over lengths of context, which double from point to point.
void Lines(std::string& svg, double left, const std::vector<std::vector<Point>>& series,
           const Scale& scale) {
  double last = 1;
  for (const std::vector<Point>& points : series) {
    for (const Point& point : points) last = std::max(last, std::log2(std::stod(point.label)));
  }
  const auto x_of = [&](const Point& point) {
    return left + 12 + (kPanelWidth - 24) * std::log2(std::stod(point.label)) / last;
  };
  std::vector<std::string> labelled;
  for (size_t s = 0; s < series.size(); ++s) {
    std::string path;
    for (const Point& point : series[s]) {
      absl::StrAppendFormat(&path, "%.1f,%.1f ", x_of(point), scale.Y(point.loss));
    }
    absl::StrAppendFormat(&svg,
                          "<polyline points=\"%s\" fill=\"none\" stroke=\"%s\" "
                          "stroke-width=\"2\"/>\n",
                          path, Colour(s));
    for (const Point& point : series[s]) {
      absl::StrAppendFormat(
          &svg,
          "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\" fill=\"%s\"><title>%s</title></circle>\n",
          x_of(point), scale.Y(point.loss), Colour(s),
          Escape(absl::StrFormat("from %s tokens: loss %.4f over %.0f tokens", point.label,
                                 point.loss, point.tokens)));
      if (std::find(labelled.begin(), labelled.end(), point.label) == labelled.end()) {
        labelled.push_back(point.label);
        Text(svg, x_of(point), kPanelTop + kPanelHeight + 18, "middle", point.label);
      }
    }
  }
}

std::string Name(const ordered_json& json) {
  std::string name = json.value("model", "model");
  if (json.contains("arithmetic"))
    absl::StrAppend(&name, ", ", json["arithmetic"].get<std::string>());
  absl::StrAppendFormat(&name, ": perplexity %.3f", json["perplexity"].get<double>());
  if (json["bits_per_byte"].is_number()) {
    absl::StrAppendFormat(&name, ", %.4f bits per byte", json["bits_per_byte"].get<double>());
  }
  return name;
}

}  // namespace

absl::Status CheckEvaluation(const ordered_json& json) {
  const auto error = [](absl::string_view key) {
    return absl::InvalidArgumentError(
        absl::StrCat(key, " is missing or is not what blockserve evaluate writes"));
  };
  if (!json.is_object()) return error("an object");
  if (json.contains("model") && !json["model"].is_string()) return error("model");
  if (json.contains("arithmetic") && !json["arithmetic"].is_string()) return error("arithmetic");
  if (!json.contains("perplexity") || !json["perplexity"].is_number()) return error("perplexity");
  if (!json.contains("bits_per_byte")) return error("bits_per_byte");
  for (const auto& [list, key] : {std::pair{"by_position_in_block", "position"},
                                  {"by_context_length", "context_tokens_from"}}) {
    if (!json.contains(list) || !json[list].is_array()) return error(list);
    for (const ordered_json& entry : json[list]) {
      for (const char* field : {key, "loss", "tokens"}) {
        if (!entry.is_object() || !entry.contains(field) || !entry[field].is_number()) {
          return error(absl::StrCat(list, ".", field));
        }
      }
      if (!entry[key].is_number_integer() || entry[key].get<int64_t>() < 0) {
        return error(absl::StrCat(list, ".", key));
      }
    }
  }
  return absl::OkStatus();
}

std::string EvaluationPlot(absl::Span<const ordered_json> evaluations) {
  std::vector<std::vector<Point>> positions, contexts;
  for (const ordered_json& json : evaluations) {
    positions.push_back(Points(json, "by_position_in_block", "position"));
    contexts.push_back(Points(json, "by_context_length", "context_tokens_from"));
    // Lengths are drawn by their logarithm.
    std::erase_if(contexts.back(), [](const Point& point) { return point.label == "0"; });
  }
  const double legend = kPanelTop + kPanelHeight + 66;
  const double height = legend + kLegendLine * static_cast<double>(evaluations.size());
  std::string svg = absl::StrFormat(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" width=\"%.0f\" "
      "height=\"%.0f\" font-family=\"sans-serif\" font-size=\"13\" fill=\"#222222\">\n"
      "<rect width=\"100%%\" height=\"100%%\" fill=\"#ffffff\"/>\n",
      kWidth, height, kWidth, height);
  Text(svg, kLeftPanel, 26, "start", "Loss, nats per token", "font-size=\"16\"");
  const Scale position_scale = FitScale(positions, /*from_zero=*/true);
  Axes(svg, kLeftPanel, position_scale, "by position in the block", "token of the block, from 0");
  Bars(svg, kLeftPanel, positions, position_scale);
  const Scale context_scale = FitScale(contexts, /*from_zero=*/false);
  Axes(svg, kRightPanel, context_scale, "by length of context", "tokens before, from");
  Lines(svg, kRightPanel, contexts, context_scale);
  for (size_t s = 0; s < evaluations.size(); ++s) {
    const double y = legend + kLegendLine * static_cast<double>(s);
    absl::StrAppendFormat(&svg,
                          "<rect x=\"%.1f\" y=\"%.1f\" width=\"12\" height=\"12\" fill=\"%s\"/>\n",
                          kLeftPanel, y - 11, Colour(s));
    Text(svg, kLeftPanel + 20, y, "start", Name(evaluations[s]));
  }
  return svg + "</svg>\n";
}

}  // namespace blockserve
