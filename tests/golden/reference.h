// LLaVA as its papers say it, in loops over doubles and straight from Hugging
// Face's canonical tensor names: an oracle that shares no code with the model.
#ifndef MIMO_TESTS_GOLDEN_REFERENCE_H_
#define MIMO_TESTS_GOLDEN_REFERENCE_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/log/check.h"
#include "absl/strings/str_cat.h"
#include "models/llava/config.h"

namespace mimo {

class Reference {
 public:
  using Vec = std::vector<double>;

  Reference(LlavaConfig config, std::map<std::string, Vec> weights)
      : config_(std::move(config)), weights_(std::move(weights)) {}

  // pixels [images, C, H, W] -> [images * tokens, H_language]
  Vec ImageFeatures(const Vec& pixels) const {
    const ClipVitConfig& c = config_.vision;
    const int64_t size = c.num_channels * c.image_size * c.image_size;
    Vec all;
    for (size_t at = 0; at < pixels.size(); at += size) {
      Vec features = Vision({pixels.begin() + at, pixels.begin() + at + size});
      const std::string p = "multi_modal_projector.linear_";
      features = Linear(features, c.hidden_size, p + "1");
      for (double& x : features) x = Act(config_.projector.activation, x);
      features = Linear(features, config_.language.hidden_size, p + "2");
      all.insert(all.end(), features.begin(), features.end());
    }
    return all;
  }

  // ids [B, S] -> [B, S, V]
  Vec Logits(const Vec& ids, int64_t batch, int64_t seq,
             const Vec& pixels) const {
    const GptConfig& c = config_.language;
    const int64_t hidden = c.hidden_size;
    const Vec features = ImageFeatures(pixels);
    const Vec& table = weights_.at(kModel + "embed_tokens.weight");
    const int64_t image = config_.special_token_ids.at("images");
    Vec logits;
    size_t used = 0;
    for (int64_t b = 0; b < batch; ++b) {
      Vec x;
      for (int64_t s = 0; s < seq; ++s) {
        const int64_t id = ids[b * seq + s];
        const auto row = id == image ? features.begin() + used * hidden
                                     : table.begin() + id * hidden;
        used += id == image;
        x.insert(x.end(), row, row + hidden);
      }
      const Vec out = Language(std::move(x));
      logits.insert(logits.end(), out.begin(), out.end());
    }
    CHECK_EQ(used * hidden, features.size());
    return logits;
  }

  // Mean over the labels that are not -100: position t predicts label t + 1.
  static double Loss(const Vec& logits, const Vec& labels, int64_t seq) {
    const int64_t vocab = logits.size() / labels.size();
    double sum = 0;
    int64_t count = 0;
    for (size_t t = 0; t + 1 < labels.size(); ++t) {
      if ((t + 1) % seq == 0 || labels[t + 1] < 0) continue;
      const auto row = logits.begin() + t * vocab;
      const double top = *std::max_element(row, row + vocab);
      double total = 0;
      for (int64_t v = 0; v < vocab; ++v) total += std::exp(row[v] - top);
      sum += std::log(total) + top - row[static_cast<int64_t>(labels[t + 1])];
      ++count;
    }
    return sum / count;
  }

 private:
  inline static const std::string kModel = "language_model.model.";

  static double Act(Activation kind, double x) {
    switch (kind) {
      case Activation::kGelu:
        return x / 2 * std::erfc(-x / std::sqrt(2));
      case Activation::kGeluTanh:
        return x / 2 *
               (1 +
                std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
      case Activation::kQuickGelu:
        return x / (1 + std::exp(-1.702 * x));
      case Activation::kSilu:
        return x / (1 + std::exp(-x));
      case Activation::kRelu:
        return std::max(x, 0.0);
      case Activation::kIdentity:
        break;
    }
    return x;
  }

  // x [n, in] -> [n, out]; a bias where there is one.
  Vec Linear(const Vec& x, int64_t in, const std::string& name) const {
    const Vec& w = weights_.at(name + ".weight");
    const auto bias = weights_.find(name + ".bias");
    const int64_t n = x.size() / in, out = w.size() / in;
    Vec y(n * out);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t o = 0; o < out; ++o) {
        double sum = bias == weights_.end() ? 0 : bias->second[o];
        for (int64_t k = 0; k < in; ++k) sum += x[i * in + k] * w[o * in + k];
        y[i * out + o] = sum;
      }
    }
    return y;
  }

  // Layer norm where there is a bias, RMS norm where not.
  Vec Normed(const Vec& x, int64_t size, const std::string& name,
             double epsilon) const {
    const Vec& w = weights_.at(name + ".weight");
    const auto bias = weights_.find(name + ".bias");
    Vec y(x.size());
    for (size_t at = 0; at < x.size(); at += size) {
      double mean = 0, square = 0;
      if (bias != weights_.end()) {
        for (int64_t k = 0; k < size; ++k) mean += x[at + k] / size;
      }
      for (int64_t k = 0; k < size; ++k) {
        square += (x[at + k] - mean) * (x[at + k] - mean) / size;
      }
      for (int64_t k = 0; k < size; ++k) {
        y[at + k] = (x[at + k] - mean) / std::sqrt(square + epsilon) * w[k] +
                    (bias == weights_.end() ? 0 : bias->second[k]);
      }
    }
    return y;
  }

  // q [S, heads * d], k and v [S, groups * d] -> [S, heads * d]
  static Vec Attend(const Vec& q, const Vec& k, const Vec& v, int64_t heads,
                    int64_t groups, int64_t d, bool causal) {
    const int64_t seq = q.size() / (heads * d);
    Vec out(q.size());
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t g = h / (heads / groups);
      for (int64_t s = 0; s < seq; ++s) {
        const int64_t seen = causal ? s + 1 : seq;
        Vec score(seen);
        for (int64_t t = 0; t < seen; ++t) {
          for (int64_t i = 0; i < d; ++i) {
            score[t] += q[(s * heads + h) * d + i] *
                        k[(t * groups + g) * d + i] / std::sqrt(d);
          }
        }
        const double top = *std::max_element(score.begin(), score.end());
        double total = 0;
        for (double& x : score) total += x = std::exp(x - top);
        for (int64_t t = 0; t < seen; ++t) {
          for (int64_t i = 0; i < d; ++i) {
            out[(s * heads + h) * d + i] +=
                score[t] / total * v[(t * groups + g) * d + i];
          }
        }
      }
    }
    return out;
  }

  // Turns the pairs (i, i + d/2) of each head by position * base^(-2i/d).
  static void Rotate(Vec& x, int64_t heads, int64_t d, double base) {
    const int64_t seq = x.size() / (heads * d);
    for (int64_t s = 0; s < seq; ++s) {
      for (int64_t h = 0; h < heads; ++h) {
        for (int64_t i = 0; i < d / 2; ++i) {
          const double angle = s * std::pow(base, -2.0 * i / d);
          double& a = x[(s * heads + h) * d + i];
          double& b = x[(s * heads + h) * d + i + d / 2];
          const double turned = a * std::cos(angle) - b * std::sin(angle);
          b = b * std::cos(angle) + a * std::sin(angle);
          a = turned;
        }
      }
    }
  }

  static void Add(Vec& x, const Vec& y) {
    for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  }

  // One picture [C, H, W] -> features [tokens, H_vision]
  Vec Vision(const Vec& pixels) const {
    const ClipVitConfig& c = config_.vision;
    const int64_t hidden = c.hidden_size, p = c.patch_size, n = c.image_size;
    const std::string tower = "vision_tower.";
    Vec patches;  // [patches, C * p * p]
    for (int64_t top = 0; top + p <= n; top += p) {
      for (int64_t left = 0; left + p <= n; left += p) {
        for (int64_t i = 0; i < c.num_channels * p * p; ++i) {
          const int64_t ch = i / (p * p), y = i / p % p, x = i % p;
          patches.push_back(pixels[(ch * n + top + y) * n + left + x]);
        }
      }
    }
    Vec x = weights_.at(tower + "embeddings.class_embedding");
    const Vec embedded = Linear(patches, c.num_channels * p * p,
                                tower + "embeddings.patch_embedding");
    x.insert(x.end(), embedded.begin(), embedded.end());
    Add(x, weights_.at(tower + "embeddings.position_embedding.weight"));
    x = Normed(x, hidden, tower + "pre_layrnorm", c.norm_epsilon);
    const int64_t layers = c.feature_layer < 0
                               ? c.num_layers + 1 + c.feature_layer
                               : c.feature_layer;
    for (int64_t i = 0; i < layers; ++i) {
      const std::string layer = absl::StrCat(tower, "encoder.layers.", i, ".");
      const Vec h = Normed(x, hidden, layer + "layer_norm1", c.norm_epsilon);
      const std::string a = layer + "self_attn.";
      const Vec mixed = Attend(
          Linear(h, hidden, a + "q_proj"), Linear(h, hidden, a + "k_proj"),
          Linear(h, hidden, a + "v_proj"), c.num_attention_heads,
          c.num_attention_heads, hidden / c.num_attention_heads, false);
      Add(x, Linear(mixed, hidden, a + "out_proj"));
      Vec f = Linear(Normed(x, hidden, layer + "layer_norm2", c.norm_epsilon),
                     hidden, layer + "mlp.fc1");
      for (double& value : f) value = Act(c.activation, value);
      Add(x, Linear(f, c.ffn_hidden_size, layer + "mlp.fc2"));
    }
    if (c.feature_select_strategy == FeatureSelect::kDefault) {
      x.erase(x.begin(), x.begin() + hidden);
    }
    return x;
  }

  // Embeddings [S, H] -> logits [S, V]
  Vec Language(Vec x) const {
    const GptConfig& c = config_.language;
    const int64_t hidden = c.hidden_size, heads = c.num_attention_heads;
    const int64_t d = c.kv_channels > 0 ? c.kv_channels : hidden / heads;
    const int64_t groups = c.num_query_groups > 0 ? c.num_query_groups : heads;
    for (int64_t i = 0; i < c.num_layers; ++i) {
      const std::string layer = absl::StrCat(kModel, "layers.", i, ".");
      const Vec h =
          Normed(x, hidden, layer + "input_layernorm", c.norm_epsilon);
      const std::string a = layer + "self_attn.";
      Vec q = Linear(h, hidden, a + "q_proj");
      Vec k = Linear(h, hidden, a + "k_proj");
      Rotate(q, heads, d, c.rotary_base);
      Rotate(k, groups, d, c.rotary_base);
      const Vec mixed =
          Attend(q, k, Linear(h, hidden, a + "v_proj"), heads, groups, d, true);
      Add(x, Linear(mixed, heads * d, a + "o_proj"));
      const Vec n =
          Normed(x, hidden, layer + "post_attention_layernorm", c.norm_epsilon);
      Vec gate = Linear(n, hidden, layer + "mlp.gate_proj");
      const Vec up = Linear(n, hidden, layer + "mlp.up_proj");
      for (size_t j = 0; j < gate.size(); ++j) {
        gate[j] = Act(Activation::kSilu, gate[j]) * up[j];
      }
      Add(x, Linear(gate, c.ffn_hidden_size, layer + "mlp.down_proj"));
    }
    x = Normed(x, hidden, kModel + "norm", c.norm_epsilon);
    return Linear(x, hidden,
                  c.tie_word_embeddings ? kModel + "embed_tokens"
                                        : "language_model.lm_head");
  }

  LlavaConfig config_;
  std::map<std::string, Vec> weights_;
};

}  // namespace mimo

#endif  // MIMO_TESTS_GOLDEN_REFERENCE_H_
