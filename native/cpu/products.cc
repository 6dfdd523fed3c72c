// Products with packed weights: the cut into units of panels and tokens. Every output element is the work of one kernel call whose
// order of operations follows from k alone, so the cut never shows.
#include "cpu/products.h"

#include "base/error.h"

namespace lapidary::cpu {

namespace {

// Tokens of a unit at most: their input stays in the second-level cache while panels pass by.
constexpr int64_t kUnitTokens = 512, kLeastUnitTokens = 64;
constexpr int64_t kUnitsPerThread = 4;
// Numbers of a range at least, for few tokens: a stream takes a while to come up to speed.
constexpr int64_t kLeastStream = 32 * 1024;
// So few tokens pass through up to so many panels of one weight of a gated product before the other's turn: streams are long, and the
// results still wait in a cache.
constexpr int64_t kStreamTokens = 16, kStreamedPanels = 256;
// Many tokens: units of block kernels, whose inputs are large, are joined up to so many at a time where threads still find enough of them.
constexpr int64_t kMostJoined = 4;

// The panels of one weight, `unit_panels` at a time, times blocks of tokens; the units that share panels follow each other.
struct Cut {
  int64_t unit_panels, unit_tokens, token_blocks;

  // Units of one panel where the kernel does not mind, for the balance of threads.
  Cut(const PreparedInput& input, int64_t all_panels, int threads)
      : unit_panels(input.tokens <= input.kernel->single_tokens ? 1 : input.kernel->unit_panels) {
    const int64_t wanted = threads * kUnitsPerThread;
    const bool blocks_of_many = dtype_info(input.kernel->weight).block_elements > 1 && input.tokens >= kLeastUnitTokens;
    if (blocks_of_many) unit_panels *= std::clamp<int64_t>(all_panels / unit_panels / (2 * wanted), 1, kMostJoined);
    const int64_t panel_units = std::max<int64_t>(all_panels / unit_panels, 1);
    const int64_t fewest = (input.tokens + kUnitTokens - 1) / kUnitTokens, most = std::max<int64_t>(input.tokens / kLeastUnitTokens, 1);
    const int64_t blocks = std::max(std::min((wanted + panel_units - 1) / panel_units, most), fewest);
    unit_tokens = padded((input.tokens + blocks - 1) / blocks);
    token_blocks = (input.tokens + unit_tokens - 1) / unit_tokens;
  }

  int64_t units(int64_t panels) const { return (panels + unit_panels - 1) / unit_panels * token_blocks; }

  // What a unit is: panels [p0, p1) and the tokens of `task`.
  struct Unit {
    PackedTask task;
    int64_t p0, p1;
  };
  // `count` units that follow each other: more than one only where all tokens make one block.
  Unit unit(const PreparedInput& input, const PackedTask& task, int64_t panels, int64_t index, int64_t count = 1) const {
    const int64_t p0 = index / token_blocks * unit_panels, t0 = index % token_blocks * unit_tokens;
    Unit u{task, p0, std::min(p0 + count * unit_panels, panels)};
    u.task.input += t0 * input.kernel->input_bytes(input.k);
    u.task.tokens = std::min(unit_tokens, input.tokens - t0);
    u.task.out += t0 * task.out_stride;
    return u;
  }

  // Units that one thread takes at least at a time.
  int64_t least_units(int64_t k) const {
    const int64_t numbers = unit_panels * kPackedRows * k, work = numbers * unit_tokens / 4;
    return std::max(kWorthAThread / std::max<int64_t>(work, 1), token_blocks > 1 ? 0 : kLeastStream / std::max<int64_t>(numbers, 1)) + 1;
  }
};

// One weight of a product.
struct Factor {
  PackedTask task{};                     // without panels where those are made on the way
  const Linear* rows = nullptr;          // plain int8 rows, packed on the way; else null
  const PackedMatrix* blocks = nullptr;  // block panels, turned into int8 ones by `converter` on the way; else null
  const PackedKernel* converter = nullptr;
  int64_t panels = 0;

  Factor() = default;
  Factor(const Kernels& kernels, const PreparedInput& input, const Linear& w) : panels((w.out() + kPackedRows - 1) / kPackedRows) {
    const PackedMatrix* m = packed_matrix(w);
    const bool int8 = input.kernel->weight == DType::i8;
    const bool converts = int8 && w.weight.dtype != DType::i8;
    if (converts) converter = find_packed(kernels, w.weight.dtype, DType::bf16);
    expect(w.in() == input.k && (converts ? m && converter && converter->to_int8 : w.weight.dtype == input.kernel->weight) &&
               (int8 ? w.scale.elements() == w.out() : m != nullptr),
           ErrorCode::internal, "product: input of ", input.k, " columns, weight ", w.weight.shape_text(), ", scales ",
           w.scale.shape_text());
    if (converts) blocks = m;
    if (!m) rows = &w;
    const bool ready = m && !converts;
    task = {input.rows,
            input.tokens,
            ready ? m->panel(0) : nullptr,
            ready ? m->panel_bytes : kPackedInt8.panel_bytes(w.in()),
            w.out(),
            w.in(),
            w.scale.as<float>(),
            nullptr,
            w.out(),
            0};
  }

  bool ready() const { return !rows && !blocks; }

  // For the panels of one unit, before the kernel's own.
  size_t scratch_floats(int64_t unit_panels) const { return ready() ? 0 : static_cast<size_t>(unit_panels * task.panel_bytes / 4); }

  // Panels [p0, p1); then panels from `next_panel` on of `next` are wanted.
  void multiply(const PackedKernel& kernel, PackedTask part, int64_t p0, int64_t p1, float* scratch, const Factor& next,
                int64_t next_panel) const {
    if (ready()) return kernel.multiply(part, p0, p1, scratch);
    if (next.blocks && next_panel < next.panels) {
      part.ahead = next.blocks->panel(next_panel);
      part.ahead_bytes = std::min(p1 - p0, next.panels - next_panel) * next.blocks->panel_bytes;
    }
    std::byte* unit = reinterpret_cast<std::byte*>(scratch);
    for (int64_t p = p0; p < p1; ++p) make_panel(part, p, unit + (p - p0) * part.panel_bytes);
    const int64_t first = p0 * kPackedRows;
    part.panels = unit;
    part.n -= first, part.w_scales += first, part.out_first -= first;
    kernel.multiply(part, 0, p1 - p0, scratch + scratch_floats(p1 - p0));
  }

  void make_panel(const PackedTask& part, int64_t p, std::byte* panel) const {
    const int64_t n = p * kPackedRows, left = part.n - n;
    if (blocks) return converter->to_int8(blocks->panel(p), part.k, part.w_scales + n, left, panel);
    const int64_t row_bytes = rows->weight.row_bytes();
    kPackedInt8.pack(rows->weight.data + n * row_bytes, row_bytes, std::min(kPackedRows, left), part.k, panel);
  }
};

}  // namespace

const PackedKernel* find_packed(const Kernels& kernels, DType weight, DType input) {
  for (const PackedKernels& part : kernels.packed) {
    for (int i = 0; i < part.count; ++i)
      if (part.list[i]->weight == weight && part.list[i]->input == input) return part.list[i];
  }
  return nullptr;
}

bool quantizes_input(const Linear& w) { return w.activations != ActScheme::none && w.activations != ActScheme::long_spans; }

const PackedKernel* kernel_for(const Kernels& kernels, const Linear& w, DType act) {
  const DType weight = w.weight.dtype;
  if (quantizes_input(w)) return find_packed(kernels, DType::i8, DType::i8);
  const PackedKernel* kernel = act == DType::bf16 ? find_packed(kernels, weight, DType::bf16) : nullptr;
  return kernel ? kernel : find_packed(kernels, weight, DType::f32);
}

PreparedInput prepare_quantized_input(ThreadPool& pool, const PackedKernel& kernel, const Tensor& x, const Tensor& scales) {
  const int64_t tokens = x.shape[0], k = x.row_elements(), bytes = kernel.input_bytes(k);
  std::byte* rows = reinterpret_cast<std::byte*>(thread_scratch(ScratchUse::input, static_cast<size_t>(tokens * bytes + 3) / 4));
  for_each(pool, tokens, k / 8,
           [&](int64_t t) { kernel.prepare_quantized(x.as<int8_t>() + t * k, scales.as<float>()[t], k, rows + t * bytes); });
  return {&kernel, rows, tokens, k};
}

InputRule input_rule(const Linear& w, DType act) { return {w.activations == ActScheme::fixed ? w.input_scale : 0, act == DType::bf16}; }

bool same_input(const Kernels& kernels, const Linear& a, const Linear& b, DType act) {
  return goes_by_panels(a) && goes_by_panels(b) && kernel_for(kernels, a, act) == kernel_for(kernels, b, act) &&
         a.activations == b.activations && input_rule(a, act).fixed_scale == input_rule(b, act).fixed_scale;
}

void multiply(const Kernels& kernels, ThreadPool& pool, const PreparedInput& input, std::initializer_list<Projection> projections) {
  if (input.tokens == 0) return;
  struct Product {
    Factor factor;
    int64_t units;
  };
  Product products[4];
  int count = 0;
  int64_t all_panels = 0, all_units = 0;
  size_t panel_floats = 0;
  for (const auto& [w, out] : projections) all_panels += (w.out() + kPackedRows - 1) / kPackedRows;
  const Cut cut(input, all_panels, pool.threads());
  for (const auto& [w, out] : projections) {
    expect(out.dtype == DType::f32 && out.elements() == input.tokens * w.out(), ErrorCode::internal, "product: out ", out.shape_text(),
           " for ", input.tokens, " tokens and weight ", w.weight.shape_text());
    Product& p = products[count++];
    p.factor = Factor(kernels, input, w);
    p.factor.task.out = out.as<float>();
    all_units += p.units = cut.units(p.factor.panels);
    panel_floats = std::max(panel_floats, p.factor.scratch_floats(cut.unit_panels));
  }
  const size_t scratch_floats = panel_floats + input.kernel->scratch_floats(std::min(input.tokens, cut.unit_tokens), input.k);
  pool.parallel_shrinking(all_units, cut.least_units(input.k), [&](int64_t begin, int64_t end) {
    float* scratch = thread_scratch(ScratchUse::kernel, scratch_floats);
    int64_t first = 0;  // unit of the current product
    for (int i = 0; i < count; first += products[i++].units) {
      const Product& p = products[i];
      // Units that lie side by side in memory go to the kernel at once.
      const bool joins = cut.token_blocks == 1 && p.factor.ready();
      for (int64_t u = std::max(begin, first), last = std::min(end, first + p.units); u < last;) {
        const int64_t count = joins ? last - u : 1;
        const Cut::Unit unit = cut.unit(input, p.factor.task, p.factor.panels, u - first, count);
        u += count;
        p.factor.multiply(*input.kernel, unit.task, unit.p0, unit.p1, scratch, p.factor, unit.p1);
      }
    }
  });
}

void multiply_gated(const Kernels& kernels, ThreadPool& pool, const PreparedInput& input, const Linear& gate, const Linear& up,
                    const Tensor& out) {
  if (input.tokens == 0) return;
  const int64_t ffn = gate.out(), panels = (ffn + kPackedRows - 1) / kPackedRows;
  expect(up.out() == ffn && out.elements() == input.tokens * ffn && is_act(out), ErrorCode::internal, "gated product: gate ",
         gate.weight.shape_text(), ", up ", up.weight.shape_text(), ", out ", out.shape_text());
  const Cut cut(input, 2 * panels, pool.threads());
  const Factor factors[2] = {Factor(kernels, input, gate), Factor(kernels, input, up)};
  const bool streams = input.tokens <= kStreamTokens && factors[0].ready() && factors[1].ready();
  const int64_t at_once = streams ? kStreamedPanels / cut.unit_panels : 1;  // units
  const int64_t width = std::min(at_once * cut.unit_panels, panels) * kPackedRows, most_tokens = std::min(input.tokens, cut.unit_tokens);
  const size_t half_floats = static_cast<size_t>(most_tokens * width);
  const size_t kernel_floats = input.kernel->scratch_floats(most_tokens, input.k) +
                               std::max(factors[0].scratch_floats(cut.unit_panels), factors[1].scratch_floats(cut.unit_panels));
  const int64_t units = cut.units(panels);
  const bool bf16 = out.dtype == DType::bf16;
  pool.parallel_shrinking(units, cut.least_units(input.k), [&](int64_t begin, int64_t end) {
    float* scratch = thread_scratch(ScratchUse::kernel, 2 * half_floats + kernel_floats);
    float* halves[2] = {scratch, scratch + half_floats};
    for (int64_t u = begin; u < end; u += at_once) {
      Cut::Unit unit{};
      for (int i = 0; i < 2; ++i) {
        unit = cut.unit(input, factors[i].task, panels, u, std::min(at_once, end - u));
        unit.task.out_stride = width;
        unit.task.out = halves[i];
        unit.task.out_first = unit.p0 * kPackedRows;
        factors[i].multiply(*input.kernel, unit.task, unit.p0, unit.p1, scratch + 2 * half_floats, factors[1 - i],
                            i == 0 ? unit.p0 : unit.p1);
      }
      const int64_t first = unit.p0 * kPackedRows, columns = std::min(unit.p1 * kPackedRows, ffn) - first;
      const int64_t t0 = u % cut.token_blocks * cut.unit_tokens;
      for (int64_t t = 0; t < unit.task.tokens; ++t) {
        std::byte* to = out.data + dtype_bytes(out.dtype, (t0 + t) * ffn + first);
        kernels.geglu(halves[0] + t * width, halves[1] + t * width, columns, to, bf16);
      }
    }
  });
}

}  // namespace lapidary::cpu
