// The operations of the model between its matrix products, each as one pass over memory, for CPUs.
//
// `cpu_kernels.py` compiles this file, makes autograd functions of it, and says what each function computes.
//
// A row of numbers is read into a float buffer that stays in the cache, computed in float32, and written once; so
// bfloat16 is rounded only where a result is stored.  The loops are plain C++, which the compiler vectorises.  Sums
// over rows have a fixed order, so results do not depend on the number of threads.
//
// Shapes: B rows, T tokens per row, X columns per row (the tokens and copies of them), D width, H heads, E width of a
// head, R relative-position buckets, V vocabulary.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <c10/util/bit_cast.h>
#include <torch/library.h>

#include <cmath>
#include <cstring>
#include <mutex>
#include <tuple>
#include <vector>

namespace {

using at::BFloat16;
using at::Tensor;
using std::optional;

#define SIMD _Pragma("omp simd")
#define SIMD_SUM(...) SIMD_PRAGMA(omp simd reduction(+ : __VA_ARGS__))
#define SIMD_PRAGMA(text) _Pragma(#text)

// ---- numbers ----

inline float load(const float* x) { return *x; }
inline float load(const BFloat16* x) { return c10::bit_cast<float>(uint32_t(x->x) << 16); }

inline void store(float* x, float value) { *x = value; }
inline void store(BFloat16* x, float value) { // to the nearest, ties to even; a NaN of arithmetic stays a NaN
  const auto bits = c10::bit_cast<uint32_t>(value);
  x->x = uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

template <typename S>
inline void load_row(const S* from, float* to, int64_t count) {
  SIMD for (int64_t i = 0; i < count; ++i) to[i] = load(from + i);
}

template <typename S>
inline void store_row(const float* from, S* to, int64_t count) {
  SIMD for (int64_t i = 0; i < count; ++i) store(to + i, from[i]);
}

// e^x, with a relative error of 2e-7; 0 below -87, where float32 has no normal results.
inline float exponential(float x) {
  const float clamped = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x); // a NaN passes
  const float power = std::rint(clamped * 1.44269504f);
  const float r = (clamped - power * 0.693359375f) + power * 2.12194440e-4f;
  float e = 1.9875691500e-4f;
  e = e * r + 1.3981999507e-3f;
  e = e * r + 8.3334519073e-3f;
  e = e * r + 4.1665795894e-2f;
  e = e * r + 1.6666665459e-1f;
  e = e * r + 5.0000001201e-1f;
  e = e * r * r + r + 1.0f;
  const float scaled = e * c10::bit_cast<float>(uint32_t(int32_t(power) + 127) << 23);
  return x < -87.0f ? 0.0f : scaled;
}

struct Activation {
  float value, slope;
};

// GELU and its derivative; both formulas need one exponential.
inline Activation gelu_tanh(float x) {
  const float inner = 1.5957691216f * (x + 0.044715f * x * x * x); // 2 sqrt(2 / pi) (..)
  const float share = 1.0f / (1.0f + exponential(-inner));         // (1 + tanh(inner / 2)) / 2
  const float inner_slope = 1.5957691216f * (1.0f + 0.134145f * x * x);
  return {x * share, share + x * share * (1.0f - share) * inner_slope};
}

inline Activation gelu_erf(float x) {
  // erf by Abramowitz and Stegun, 7.1.26; absolute error 1.5e-7
  const float z = std::fabs(x) * 0.70710678f;
  const float t = 1.0f / (1.0f + 0.3275911f * z);
  const float gauss = exponential(-z * z);
  const float tail =
      0.5f * t * gauss *
      (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
  const float share = x < 0 ? tail : 1.0f - tail;
  return {x * share, share + x * gauss * 0.39894228f};
}

struct Moments {
  float mean, rstd;
};

inline Moments moments(const float* x, int64_t count, float eps) {
  float sum = 0, squares = 0;
  SIMD_SUM(sum) for (int64_t i = 0; i < count; ++i) sum += x[i];
  const float mean = sum / float(count);
  SIMD_SUM(squares) for (int64_t i = 0; i < count; ++i) squares += (x[i] - mean) * (x[i] - mean);
  return {mean, 1.0f / std::sqrt(squares / float(count) + eps)};
}

// Calls f with a value of the dtype, float or BFloat16.
template <typename F>
void for_dtype(const Tensor& x, const F& f) {
  if (x.scalar_type() == at::kBFloat16)
    f(BFloat16{});
  else
    f(float{});
}

// The part [B, .., D] of a row b of a tensor that is absent or has one row for each b.
inline const float* row_of(const optional<Tensor>& x, int64_t b) {
  return x ? x->const_data_ptr<float>() + b * x->stride(0) : nullptr;
}

// ---- dropout masks ----

// The next `count` outputs of the Mersenne twister, as `engine()` returns them one by one.
void random_words(at::mt19937& engine, uint32_t* words, int64_t count) {
  constexpr int64_t N = at::MERSENNE_STATE_N, M = at::MERSENNE_STATE_M;
  auto pod = engine.data();
  uint32_t* state = pod.state_.data();
  const auto twist = [](uint32_t u, uint32_t v) {
    return (((u & 0x80000000u) | (v & 0x7fffffffu)) >> 1) ^ ((v & 1u) ? 0x9908b0dfu : 0u);
  };
  while (count > 0) {
    if (pod.left_ == 1) { // no words are left
      SIMD for (int64_t k = 0; k < N - M; ++k) state[k] = state[k + M] ^ twist(state[k], state[k + 1]);
      // elements that are M - N apart depend on each other, and are further apart than a vector is long
      _Pragma("omp simd safelen(64)") for (int64_t k = N - M; k < N - 1; ++k) state[k] =
          state[k + M - N] ^ twist(state[k], state[k + 1]);
      state[N - 1] = state[M - 1] ^ twist(state[N - 1], state[0]);
      pod.left_ = N + 1;
      pod.next_ = 0;
    }
    const int64_t taken = std::min<int64_t>(pod.left_ - 1, count);
    const uint32_t* from = state + pod.next_;
    SIMD for (int64_t i = 0; i < taken; ++i) {
      uint32_t y = from[i];
      y ^= y >> 11;
      y ^= (y << 7) & 0x9d2c5680u;
      y ^= (y << 15) & 0xefc60000u;
      words[i] = y ^ (y >> 18);
    }
    pod.left_ -= int(taken);
    pod.next_ += uint32_t(taken);
    words += taken;
    count -= taken;
  }
  engine.set_data(pod);
}

// uint8 [count]: the mask of `attention.keep_mask`, from the same random numbers of torch's default generator.
Tensor keep_mask(int64_t count, int64_t dropped) {
  Tensor keep = at::empty({(count + 3) / 4 * 4}, at::kByte);
  uint8_t* out = keep.mutable_data_ptr<uint8_t>();
  auto* generator = at::get_generator_or_default<at::CPUGeneratorImpl>(std::nullopt, at::detail::getDefaultCPUGenerator());
  const std::lock_guard<std::mutex> lock(generator->mutex_);
  at::mt19937 engine = generator->engine();
  const int threshold = int(dropped) - (1 << 15);
  constexpr int64_t BLOCK = 4096;
  uint32_t words[BLOCK];
  for (int64_t start = 0; start < keep.numel(); start += 2 * BLOCK) {
    const int64_t size = std::min(2 * BLOCK, keep.numel() - start);
    random_words(engine, words, size / 2);
    // torch makes 64 bits of two words, the first of them the upper half
    uint8_t* part = out + start;
    SIMD for (int64_t i = 0; i < size / 2; i += 2) {
      const uint32_t high = words[i], low = words[i + 1];
      part[2 * i] = int16_t(low) >= threshold;
      part[2 * i + 1] = int16_t(low >> 16) >= threshold;
      part[2 * i + 2] = int16_t(high) >= threshold;
      part[2 * i + 3] = int16_t(high >> 16) >= threshold;
    }
  }
  generator->set_engine(engine);
  return keep.narrow(0, 0, count);
}

// ---- norm with shift and scale, residual ----

// out = LayerNorm(x) (1 + scale) + shift; x float [B, T, D], shift and scale float [B, 1, D].
void modulated_norm(
    const Tensor& x, const optional<Tensor>& shift, const optional<Tensor>& scale, double eps, Tensor out) {
  const int64_t T = x.size(1), D = x.size(2);
  const float* from = x.const_data_ptr<float>();
  for_dtype(out, [&](auto type) {
    using S = decltype(type);
    S* to = out.mutable_data_ptr<S>();
    at::parallel_for(0, x.size(0) * T, 16, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const float* row = from + n * D;
        const auto [mean, rstd] = moments(row, D, float(eps));
        if (!scale) {
          SIMD for (int64_t i = 0; i < D; ++i) store(to + n * D + i, (row[i] - mean) * rstd);
          continue;
        }
        const float *b = row_of(shift, n / T), *a = row_of(scale, n / T);
        SIMD for (int64_t i = 0; i < D; ++i) store(to + n * D + i, (row[i] - mean) * rstd * (1.0f + a[i]) + b[i]);
      }
    });
  });
}

void modulated_norm_backward(
    const Tensor& grad_out, const Tensor& x, const optional<Tensor>& scale, double eps, Tensor grad_x,
    const optional<Tensor>& grad_shift, const optional<Tensor>& grad_scale) {
  const int64_t T = x.size(1), D = x.size(2);
  const float* from = x.const_data_ptr<float>();
  float* to = grad_x.mutable_data_ptr<float>();
  for_dtype(grad_out, [&](auto type) {
    using S = decltype(type);
    const S* grads = grad_out.const_data_ptr<S>();
    at::parallel_for(0, x.size(0), 1, [&](int64_t begin, int64_t end) {
      std::vector<float> buffers(3 * D);
      float *grad = buffers.data(), *normal = grad + D, *factor = normal + D;
      for (int64_t b = begin; b < end; ++b) {
        const float* a = row_of(scale, b);
        float* to_shift = scale ? grad_shift->mutable_data_ptr<float>() + b * D : nullptr;
        float* to_scale = scale ? grad_scale->mutable_data_ptr<float>() + b * D : nullptr;
        SIMD for (int64_t i = 0; i < D; ++i) factor[i] = scale ? 1.0f + a[i] : 1.0f;
        for (int64_t n = b * T; n < (b + 1) * T; ++n) {
          const float* row = from + n * D;
          const auto [mean, rstd] = moments(row, D, float(eps));
          load_row(grads + n * D, grad, D);
          SIMD for (int64_t i = 0; i < D; ++i) normal[i] = (row[i] - mean) * rstd;
          if (scale) {
            SIMD for (int64_t i = 0; i < D; ++i) {
              to_shift[i] += grad[i];
              to_scale[i] += grad[i] * normal[i];
            }
          }
          float sum = 0, dot = 0;
          SIMD_SUM(sum, dot) for (int64_t i = 0; i < D; ++i) {
            grad[i] *= factor[i];
            sum += grad[i];
            dot += grad[i] * normal[i];
          }
          sum /= float(D);
          dot /= float(D);
          SIMD for (int64_t i = 0; i < D; ++i) to[n * D + i] = rstd * (grad[i] - sum - normal[i] * dot);
        }
      }
    });
  });
}

// out = x + gate * keep * keep_scale * update; x float [B, T, D], gate float [B, 1, D], keep uint8.
void add_update(
    const Tensor& x, const Tensor& update, const optional<Tensor>& gate, const optional<Tensor>& keep,
    double keep_scale, Tensor out) {
  const int64_t T = x.size(1), D = x.size(2);
  const float* from = x.const_data_ptr<float>();
  const uint8_t* kept = keep ? keep->const_data_ptr<uint8_t>() : nullptr;
  float* to = out.mutable_data_ptr<float>();
  for_dtype(update, [&](auto type) {
    const auto* updates = update.const_data_ptr<decltype(type)>();
    at::parallel_for(0, x.size(0) * T, 16, [&](int64_t begin, int64_t end) {
      std::vector<float> factor(D);
      for (int64_t n = begin; n < end; ++n) {
        const float* a = row_of(gate, n / T);
        const int64_t start = n * D;
        SIMD for (int64_t i = 0; i < D; ++i) factor[i] = float(keep_scale) * (gate ? a[i] : 1.0f);
        if (kept) {
          SIMD for (int64_t i = 0; i < D; ++i) factor[i] = kept[start + i] ? factor[i] : 0.0f;
        }
        SIMD for (int64_t i = 0; i < D; ++i) to[start + i] = from[start + i] + factor[i] * load(updates + start + i);
      }
    });
  });
}

void add_update_backward(
    const Tensor& grad_out, const Tensor& update, const optional<Tensor>& gate, const optional<Tensor>& keep,
    double keep_scale, Tensor grad_update, const optional<Tensor>& grad_gate) {
  const int64_t T = update.size(1), D = update.size(2);
  const float* grads = grad_out.const_data_ptr<float>();
  const uint8_t* kept = keep ? keep->const_data_ptr<uint8_t>() : nullptr;
  for_dtype(update, [&](auto type) {
    using S = decltype(type);
    const S* updates = update.const_data_ptr<S>();
    S* to = grad_update.mutable_data_ptr<S>();
    at::parallel_for(0, update.size(0), 1, [&](int64_t begin, int64_t end) {
      std::vector<float> grad(D);
      for (int64_t b = begin; b < end; ++b) {
        const float* a = row_of(gate, b);
        float* to_gate = gate ? grad_gate->mutable_data_ptr<float>() + b * D : nullptr;
        for (int64_t start = b * T * D; start < (b + 1) * T * D; start += D) {
          SIMD for (int64_t i = 0; i < D; ++i) grad[i] = float(keep_scale) * grads[start + i];
          if (kept) {
            SIMD for (int64_t i = 0; i < D; ++i) grad[i] = kept[start + i] ? grad[i] : 0.0f;
          }
          if (gate) {
            SIMD for (int64_t i = 0; i < D; ++i) {
              to_gate[i] += grad[i] * load(updates + start + i);
              grad[i] *= a[i];
            }
          }
          store_row(grad.data(), to + start, D);
        }
      }
    });
  });
}

// ---- gated norm ----

// One row (b, t) of x [B, H, T, E], of which only the last dimension must be contiguous, from or to a row of H E floats.
template <typename S>
struct HeadRows {
  S* data;
  int64_t heads, width, stride_b, stride_h, stride_t;

  explicit HeadRows(const Tensor& x)
      : data(x.data_ptr<S>()), heads(x.size(1)), width(x.size(3)), stride_b(x.stride(0)), stride_h(x.stride(1)),
        stride_t(x.stride(2)) {}

  S* head(int64_t b, int64_t t, int64_t h) const { return data + b * stride_b + t * stride_t + h * stride_h; }

  void load(int64_t b, int64_t t, float* row) const {
    for (int64_t h = 0; h < heads; ++h) load_row(head(b, t, h), row + h * width, width);
  }
  void store(int64_t b, int64_t t, const float* row) const {
    for (int64_t h = 0; h < heads; ++h) store_row(row + h * width, head(b, t, h), width);
  }
};

// out [B, T, D] = LayerNorm(x GELU(gate)); x [B, H, T, E], gate [B, 1, T, D].
void gated_norm(const Tensor& x, const Tensor& gate, double eps, bool tanh, Tensor out) {
  const int64_t T = x.size(2), D = x.size(1) * x.size(3);
  for_dtype(x, [&](auto type) {
    using S = decltype(type);
    const HeadRows<S> xs(x), gates(gate);
    S* to = out.mutable_data_ptr<S>();
    at::parallel_for(0, x.size(0) * T, 16, [&](int64_t begin, int64_t end) {
      std::vector<float> buffers(2 * D);
      float *row = buffers.data(), *g = row + D;
      for (int64_t n = begin; n < end; ++n) {
        xs.load(n / T, n % T, row);
        gates.load(n / T, n % T, g);
        if (tanh) {
          SIMD for (int64_t i = 0; i < D; ++i) row[i] *= gelu_tanh(g[i]).value;
        } else {
          SIMD for (int64_t i = 0; i < D; ++i) row[i] *= gelu_erf(g[i]).value;
        }
        const auto [mean, rstd] = moments(row, D, float(eps));
        SIMD for (int64_t i = 0; i < D; ++i) store(to + n * D + i, (row[i] - mean) * rstd);
      }
    });
  });
}

void gated_norm_backward(
    const Tensor& grad_out, const Tensor& x, const Tensor& gate, double eps, bool tanh, Tensor grad_x,
    Tensor grad_gate) {
  const int64_t T = x.size(2), D = x.size(1) * x.size(3);
  for_dtype(x, [&](auto type) {
    using S = decltype(type);
    const HeadRows<S> xs(x), gates(gate), grad_xs(grad_x), grad_gates(grad_gate);
    const S* grads = grad_out.const_data_ptr<S>();
    at::parallel_for(0, x.size(0) * T, 16, [&](int64_t begin, int64_t end) {
      std::vector<float> buffers(5 * D);
      float *row = buffers.data(), *g = row + D, *slope = g + D, *product = slope + D, *grad = product + D;
      for (int64_t n = begin; n < end; ++n) {
        xs.load(n / T, n % T, row);
        gates.load(n / T, n % T, g);
        load_row(grads + n * D, grad, D);
        const auto activate = [&](auto gelu) {
          SIMD for (int64_t i = 0; i < D; ++i) {
            const Activation activation = gelu(g[i]);
            g[i] = activation.value;
            slope[i] = activation.slope;
            product[i] = row[i] * activation.value;
          }
        };
        if (tanh)
          activate([](float v) { return gelu_tanh(v); });
        else
          activate([](float v) { return gelu_erf(v); });
        const auto [mean, rstd] = moments(product, D, float(eps));
        float sum = 0, dot = 0;
        SIMD_SUM(sum, dot) for (int64_t i = 0; i < D; ++i) {
          product[i] = (product[i] - mean) * rstd;
          sum += grad[i];
          dot += grad[i] * product[i];
        }
        sum /= float(D);
        dot /= float(D);
        SIMD for (int64_t i = 0; i < D; ++i) {
          const float grad_product = rstd * (grad[i] - sum - product[i] * dot);
          slope[i] *= grad_product * row[i];
          g[i] *= grad_product;
        }
        grad_xs.store(n / T, n % T, g);
        grad_gates.store(n / T, n % T, slope);
      }
    });
  });
}

// ---- attention ----

// to[k, b, h, t, :] = from[k, b, h, t, :], for any strides of the first four dimensions.
void copy_heads(const Tensor& from, Tensor to) {
  const int64_t K = from.size(0), B = from.size(1), H = from.size(2), T = from.size(3);
  const size_t bytes = size_t(from.size(4)) * from.element_size();
  const auto* source = static_cast<const char*>(from.const_data_ptr());
  auto* target = static_cast<char*>(to.mutable_data_ptr());
  const auto offset = [](const Tensor& x, int64_t k, int64_t b, int64_t h, int64_t t) {
    return (k * x.stride(0) + b * x.stride(1) + h * x.stride(2) + t * x.stride(3)) * x.element_size();
  };
  at::parallel_for(0, B * H, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n)
      for (int64_t k = 0; k < K; ++k)
        for (int64_t t = 0; t < T; ++t)
          std::memcpy(target + offset(to, k, n / H, n % H, t), source + offset(from, k, n / H, n % H, t), bytes);
  });
}

// Consecutive offsets query - key, first to last, whose buckets are equal (step 0) or grow by one (step 1).
struct Offsets {
  int64_t first, last, bucket, step;
};

// All offsets of rows of T tokens, from the buckets int64 [X, X] of (query, key).
std::vector<Offsets> offsets_by_bucket(const Tensor& buckets, int64_t T) {
  const auto bucket = buckets.accessor<int64_t, 2>();
  std::vector<Offsets> runs;
  for (int64_t d = 1 - T; d < T; ++d) {
    const int64_t r = d < 0 ? bucket[0][-d] : bucket[d][0];
    if (!runs.empty()) {
      Offsets& run = runs.back();
      const int64_t step = r - (run.bucket + run.step * (run.last - run.first));
      if (step == run.step || (run.first == run.last && step == 1)) {
        run.step = step;
        run.last = d;
        continue;
      }
    }
    runs.push_back({d, d, r, 0});
  }
  return runs;
}

// Calls equal(j, end, bucket) for the keys j .. end - 1 of each bucket, and growing(j, end, bucket) for keys of which
// key k has the bucket `bucket` - k; query i.
template <typename Equal, typename Growing>
inline void for_keys(
    const std::vector<Offsets>& runs, int64_t i, int64_t T, int64_t X, const Equal& equal, const Growing& growing) {
  const int64_t place = i % T;
  for (int64_t copy = 0; copy < X; copy += T)
    for (const Offsets& run : runs) {
      const int64_t begin = std::max<int64_t>(place - run.last, 0), end = std::min(place - run.first, T - 1) + 1;
      if (begin >= end) continue;
      if (run.step == 0)
        equal(copy + begin, copy + end, run.bucket);
      else
        growing(copy + begin, copy + end, run.bucket + place + copy - run.first);
    }
}

// Softmax over the keys of scale * scores + c2p[query, bucket] + p2c[bucket, key] + mask, and dropout.
//
// c2p and p2c are the content-to-position and the position-to-content scores (DeBERTa, arXiv 2006.03654).
// scores [H, B, X, X], c2p [H, B, X, R], p2c [H, R, B, X], mask [B, 1, X, X], keep [B, H, X, X].  The
// probabilities replace the scores, dropped ones with a minus sign; `dropped` receives what dropout makes of them.
void softmax(
    Tensor scores, const Tensor& c2p, const Tensor& p2c, const optional<Tensor>& mask, const Tensor& buckets,
    int64_t T, double scale, const optional<Tensor>& keep, double keep_scale, const optional<Tensor>& dropped) {
  const int64_t H = scores.size(0), B = scores.size(1), X = scores.size(2), R = c2p.size(3);
  const auto runs = offsets_by_bucket(buckets, T);
  const uint8_t* kept = keep ? keep->const_data_ptr<uint8_t>() : nullptr;
  for_dtype(scores, [&, scale = float(scale), factor = float(keep_scale)](auto type) {
    using S = decltype(type);
    S* score = scores.mutable_data_ptr<S>();
    S* out = dropped ? dropped->mutable_data_ptr<S>() : nullptr;
    const S* masks = mask ? mask->const_data_ptr<S>() : nullptr;
    at::parallel_for(0, H * B, 1, [&](int64_t begin, int64_t end) {
      std::vector<float> buffers(X + R + R * X);
      float *row = buffers.data(), *query = row + X, *key = query + R;
      for (int64_t n = begin; n < end; ++n) {
        const int64_t h = n / B, b = n % B;
        for (int64_t r = 0; r < R; ++r)
          load_row(p2c.const_data_ptr<S>() + ((h * R + r) * B + b) * X, key + r * X, X);
        for (int64_t i = 0; i < X; ++i) {
          const int64_t start = (n * X + i) * X;
          load_row(c2p.const_data_ptr<S>() + (n * X + i) * R, query, R);
          SIMD for (int64_t j = 0; j < X; ++j) row[j] = scale * load(score + start + j);
          for_keys(
              runs, i, T, X,
              [&](int64_t from, int64_t to, int64_t r) {
                const float value = query[r];
                const float* values = key + r * X;
                SIMD for (int64_t j = from; j < to; ++j) row[j] += value + values[j];
              },
              [&](int64_t from, int64_t to, int64_t r) {
                SIMD for (int64_t j = from; j < to; ++j) row[j] += query[r - j] + key[(r - j) * X + j];
              });
          if (masks) {
            const S* blocked = masks + (b * X + i) * X;
            SIMD for (int64_t j = 0; j < X; ++j) row[j] += load(blocked + j);
          }
          float largest = row[0], sum = 0;
          _Pragma("omp simd reduction(max : largest)") for (int64_t j = 0; j < X; ++j) largest =
              row[j] > largest ? row[j] : largest;
          SIMD_SUM(sum) for (int64_t j = 0; j < X; ++j) {
            row[j] = exponential(row[j] - largest);
            sum += row[j];
          }
          const float share = 1.0f / sum;
          if (!kept) {
            SIMD for (int64_t j = 0; j < X; ++j) store(score + start + j, row[j] * share);
            continue;
          }
          const uint8_t* kept_row = kept + ((b * H + h) * X + i) * X;
          SIMD for (int64_t j = 0; j < X; ++j) {
            const float is_kept = float(kept_row[j]), p = row[j] * share;
            store(score + start + j, p * (2.0f * is_kept - 1.0f));
            store(out + start + j, p * is_kept * factor);
          }
        }
      }
    });
  });
}

// The gradients of the scores, in place of those of the dropped probabilities, of c2p and of p2c.
//
// `probability` is as `softmax` leaves it; `dropped` receives what dropout makes of it, if there is dropout.
void softmax_backward(
    Tensor grad, const Tensor& probability, const Tensor& buckets, int64_t T, double keep_scale,
    const optional<Tensor>& dropped, Tensor grad_c2p, Tensor grad_p2c) {
  const int64_t H = grad.size(0), B = grad.size(1), X = grad.size(2), R = grad_c2p.size(3);
  const auto runs = offsets_by_bucket(buckets, T);
  for_dtype(grad, [&, keep_scale = float(keep_scale)](auto type) {
    using S = decltype(type);
    S* grads = grad.mutable_data_ptr<S>();
    S* out = dropped ? dropped->mutable_data_ptr<S>() : nullptr;
    at::parallel_for(0, H * B, 1, [&](int64_t begin, int64_t end) {
      std::vector<float> buffers(2 * X + R + R * X);
      float *row = buffers.data(), *share = row + X, *query = share + X, *key = query + R;
      for (int64_t n = begin; n < end; ++n) {
        std::fill(key, key + R * X, 0.0f);
        for (int64_t i = 0; i < X; ++i) {
          const int64_t start = (n * X + i) * X;
          load_row(probability.const_data_ptr<S>() + start, share, X);
          load_row(grads + start, row, X);
          if (dropped) {
            const float factor = keep_scale; // a copy in a register
            SIMD for (int64_t j = 0; j < X; ++j) {
              const float p = share[j], kept = p < 0 ? 0.0f : factor;
              share[j] = std::fabs(p);
              row[j] *= kept;
              store(out + start + j, p * kept);
            }
          }
          float dot = 0;
          SIMD_SUM(dot) for (int64_t j = 0; j < X; ++j) dot += share[j] * row[j];
          SIMD for (int64_t j = 0; j < X; ++j) row[j] = share[j] * (row[j] - dot);
          store_row(row, grads + start, X);
          std::fill(query, query + R, 0.0f);
          for_keys(
              runs, i, T, X,
              [&](int64_t from, int64_t to, int64_t r) {
                float sum = 0;
                float* sums = key + r * X;
                SIMD_SUM(sum) for (int64_t j = from; j < to; ++j) {
                  sum += row[j];
                  sums[j] += row[j];
                }
                query[r] += sum;
              },
              [&](int64_t from, int64_t to, int64_t r) {
                SIMD for (int64_t j = from; j < to; ++j) {
                  query[r - j] += row[j];
                  key[(r - j) * X + j] += row[j];
                }
              });
          store_row(query, grad_c2p.mutable_data_ptr<S>() + (n * X + i) * R, R);
        }
        for (int64_t r = 0; r < R; ++r)
          store_row(key + r * X, grad_p2c.mutable_data_ptr<S>() + ((n / B * R + r) * B + n % B) * X, X);
      }
    });
  });
}

} // namespace

TORCH_LIBRARY(ltg_mdlm_cpu, library) {
  library.def("keep_mask(int count, int dropped) -> Tensor", keep_mask);
  library.def(
      "modulated_norm(Tensor x, Tensor? shift, Tensor? scale, float eps, Tensor(a!) out) -> ()", modulated_norm);
  library.def(
      "modulated_norm_backward(Tensor grad_out, Tensor x, Tensor? scale, float eps, Tensor(a!) grad_x,"
      " Tensor? grad_shift, Tensor? grad_scale) -> ()",
      modulated_norm_backward);
  library.def(
      "add_update(Tensor x, Tensor update, Tensor? gate, Tensor? keep, float keep_scale, Tensor(a!) out) -> ()",
      add_update);
  library.def(
      "add_update_backward(Tensor grad_out, Tensor update, Tensor? gate, Tensor? keep, float keep_scale,"
      " Tensor(a!) grad_update, Tensor? grad_gate) -> ()",
      add_update_backward);
  library.def("gated_norm(Tensor x, Tensor gate, float eps, bool tanh, Tensor(a!) out) -> ()", gated_norm);
  library.def(
      "gated_norm_backward(Tensor grad_out, Tensor x, Tensor gate, float eps, bool tanh, Tensor(a!) grad_x,"
      " Tensor(b!) grad_gate) -> ()",
      gated_norm_backward);
  library.def("copy_heads(Tensor source, Tensor(a!) target) -> ()", copy_heads);
  library.def(
      "softmax(Tensor(a!) scores, Tensor c2p, Tensor p2c, Tensor? mask, Tensor buckets, int length,"
      " float scale, Tensor? keep, float keep_scale, Tensor? dropped) -> ()",
      softmax);
  library.def(
      "softmax_backward(Tensor(a!) grad, Tensor probability, Tensor buckets, int length, float keep_scale,"
      " Tensor? dropped, Tensor(b!) grad_c2p, Tensor(c!) grad_p2c) -> ()",
      softmax_backward);
}
