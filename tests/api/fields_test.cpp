// The declarations of the operations' fields.
#include "flashmla/fields.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "flashmla/flashmla.h"

namespace flashmla {
namespace {

std::vector<std::string> split(std::string_view text, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream{std::string(text)};
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

bool is_identifier(std::string_view text) {
  return !text.empty() && !std::isdigit(text[0]) &&
         std::all_of(text.begin(), text.end(),
                     [](unsigned char c) { return std::islower(c) || std::isdigit(c) || c == '_'; });
}

bool is_element_type(const std::string& name) {
  return std::set<std::string>{"bf16", "f16", "f32", "u8", "i32", "i64"}.contains(name);
}

TEST(Fields, HaveUniqueNamesAndAMeaning) {
  std::set<std::string_view> operations;
  Operations::for_each([&]<class Op>() {
    const Fields<Op>& fields = Op::fields();
    EXPECT_TRUE(operations.insert(fields.operation).second);
    EXPECT_TRUE(is_identifier(fields.operation)) << fields.operation;
    EXPECT_FALSE(fields.summary.empty());
    std::set<std::string_view> names;
    for (const auto& field : fields.tensors) {
      EXPECT_TRUE(names.insert(field.name).second) << fields.operation << " " << field.name;
      EXPECT_TRUE(is_identifier(field.name)) << field.name;
      EXPECT_FALSE(field.meaning.empty()) << field.name;
    }
    for (const auto& field : fields.scalars) {
      EXPECT_TRUE(names.insert(field.name).second) << fields.operation << " " << field.name;
      EXPECT_TRUE(is_identifier(field.name)) << field.name;
      EXPECT_FALSE(field.meaning.empty()) << field.name;
    }
  });
  EXPECT_EQ(operations.size(), 10u);
}

TEST(Fields, HaveTypesThatExist) {
  Operations::for_each([]<class Op>() {
    std::set<std::string> earlier;
    for (const auto& field : Op::fields().tensors) {
      EXPECT_FALSE(field.types.empty());
      for (const std::string& type : split(field.types, '|')) {
        EXPECT_TRUE(is_element_type(type) || earlier.contains(type)) << field.name << ": " << type;
      }
      earlier.insert(std::string(field.name));
    }
  });
}

TEST(Fields, HaveShapesOfNumbersAndSymbols) {
  Operations::for_each([]<class Op>() {
    for (const auto& field : Op::fields().tensors) {
      ASSERT_TRUE(field.shape.starts_with("[") && field.shape.ends_with("]")) << field.name;
      const auto dims = split(field.shape.substr(1, field.shape.size() - 2), ' ');
      EXPECT_GE(dims.size(), 1u);
      EXPECT_LE(dims.size(), std::size_t{kMaxDims});
      for (std::string dim : dims) {
        const bool number =
            std::all_of(dim.begin(), dim.end(), [](unsigned char c) { return std::isdigit(c); });
        if (dim.ends_with("+1")) dim.resize(dim.size() - 2);
        EXPECT_TRUE((number && !dim.empty()) || is_identifier(dim)) << field.name << ": " << dim;
      }
    }
  });
}

TEST(Fields, EndWithOutputs) {
  Operations::for_each([]<class Op>() {
    bool outputs = false;
    for (const auto& field : Op::fields().tensors) {
      const bool output = field.role == Role::kOutput || field.role == Role::kUpdate;
      EXPECT_TRUE(output || !outputs) << Op::fields().operation << " " << field.name;
      outputs |= output;
    }
    EXPECT_TRUE(outputs) << Op::fields().operation;
  });
}

template <class Op>
using Members = std::map<std::string, TensorView Op::*>;

/// Marks one tensor of an operation after the other, and looks for the mark through the declarations.
template <class Op>
void expect_members(const Members<Op>& members) {
  for (const auto& [name, member] : members) {
    Op op;
    (op.*member).ndim = 3;
    std::vector<std::string> found;
    for (const auto& field : Op::fields().tensors) {
      const auto* one = std::get_if<TensorView Op::*>(&field.member);
      if (one != nullptr && (op.**one).ndim == 3) found.push_back(std::string(field.name));
    }
    EXPECT_EQ(found, std::vector<std::string>{name}) << Op::fields().operation;
  }
  std::size_t declared = 0;
  for (const auto& field : Op::fields().tensors)
    declared += std::holds_alternative<TensorView Op::*>(field.member);
  EXPECT_EQ(declared, members.size()) << Op::fields().operation;
}

TEST(Fields, AreTheMembersOfTheirName) {
  using D = DenseDecode;
  expect_members<D>({{"q", &D::q},
                     {"kv_cache", &D::kv_cache},
                     {"block_table", &D::block_table},
                     {"cache_seqlens", &D::cache_seqlens},
                     {"schedule", &D::schedule},
                     {"num_splits", &D::num_splits},
                     {"descale_q", &D::descale_q},
                     {"descale_k", &D::descale_k},
                     {"out", &D::out},
                     {"lse", &D::lse}});
  using S = SparseDecode;
  expect_members<S>({{"q", &S::q},
                     {"kv_cache", &S::kv_cache},
                     {"indices", &S::indices},
                     {"topk_length", &S::topk_length},
                     {"attn_sink", &S::attn_sink},
                     {"extra_kv_cache", &S::extra_kv_cache},
                     {"extra_indices", &S::extra_indices},
                     {"extra_topk_length", &S::extra_topk_length},
                     {"schedule", &S::schedule},
                     {"num_splits", &S::num_splits},
                     {"out", &S::out},
                     {"lse", &S::lse}});
  using P = SparsePrefill;
  expect_members<P>({{"q", &P::q},
                     {"kv", &P::kv},
                     {"indices", &P::indices},
                     {"attn_sink", &P::attn_sink},
                     {"topk_length", &P::topk_length},
                     {"out", &P::out},
                     {"max_logits", &P::max_logits},
                     {"lse", &P::lse}});
  using F = MhaForward;
  expect_members<F>({{"q", &F::q},
                     {"k", &F::k},
                     {"v", &F::v},
                     {"cu_seqlens_q", &F::cu_seqlens_q},
                     {"cu_seqlens_k", &F::cu_seqlens_k},
                     {"out", &F::out},
                     {"lse", &F::lse}});
  using B = MhaBackward;
  expect_members<B>({{"q", &B::q},
                     {"k", &B::k},
                     {"v", &B::v},
                     {"out", &B::out},
                     {"lse", &B::lse},
                     {"d_out", &B::d_out},
                     {"cu_seqlens_q", &B::cu_seqlens_q},
                     {"cu_seqlens_k", &B::cu_seqlens_k},
                     {"d_q", &B::d_q},
                     {"d_k", &B::d_k},
                     {"d_v", &B::d_v}});
  expect_members<QuantizeKv>({{"kv", &QuantizeKv::kv}, {"kv_cache", &QuantizeKv::kv_cache}});
  expect_members<DequantizeKv>({{"kv_cache", &DequantizeKv::kv_cache}, {"kv", &DequantizeKv::kv}});
  using A = AppendKv;
  expect_members<A>({{"latent", &A::latent},
                     {"rope", &A::rope},
                     {"slot_mapping", &A::slot_mapping},
                     {"kv_cache", &A::kv_cache}});
  expect_members<MergeStates>({{"out", &MergeStates::out}, {"lse", &MergeStates::lse}});
  using M = MakeSchedule;
  expect_members<M>({{"cache_seqlens", &M::cache_seqlens},
                     {"topk_length", &M::topk_length},
                     {"extra_topk_length", &M::extra_topk_length},
                     {"schedule", &M::schedule},
                     {"num_splits", &M::num_splits}});
}

/// Names of the scalars, and of the lists, that a changed operation shows through its declarations.
template <class Op>
std::vector<std::string> changed_scalars(const Op& op) {
  const Op fresh;
  std::vector<std::string> names;
  for (const auto& field : Op::fields().scalars) {
    std::visit(
        [&](auto member) {
          if (op.*member != fresh.*member) names.push_back(std::string(field.name));
        },
        field.member);
  }
  return names;
}

TEST(Fields, HaveTheScalarsOfTheirName) {
  using Names = std::vector<std::string>;
  DenseDecode dense;
  dense.softmax_scale = 1.0f;
  EXPECT_EQ(changed_scalars(dense), Names{"softmax_scale"});
  dense.causal = true;
  dense.split_size = 7;
  EXPECT_EQ(changed_scalars(dense), (Names{"softmax_scale", "causal", "split_size"}));
  SparseDecode sparse;
  sparse.split_size = 7;
  EXPECT_EQ(changed_scalars(sparse), Names{"split_size"});
  SparsePrefill prefill;
  prefill.softmax_scale = 0.0f;
  EXPECT_EQ(changed_scalars(prefill), Names{"softmax_scale"});
  MhaForward forward;
  forward.causal = true;
  EXPECT_EQ(changed_scalars(forward), Names{"causal"});
  MhaBackward backward;
  backward.deterministic = true;
  EXPECT_EQ(changed_scalars(backward), Names{"deterministic"});
  MakeSchedule schedule;
  schedule.max_seqlen = 1;
  EXPECT_EQ(changed_scalars(schedule), Names{"max_seqlen"});
  schedule = {};
  schedule.topk = 2;
  EXPECT_EQ(changed_scalars(schedule), Names{"topk"});
  schedule = {};
  schedule.extra_topk = 3;
  schedule.split_size = 4;
  EXPECT_EQ(changed_scalars(schedule), (Names{"extra_topk", "split_size"}));
}

TEST(Fields, HaveTheListsOfTheirName) {
  const TensorView views[3];
  MergeStates op;
  op.outs = views;
  op.lses = std::span(views).first(2);
  std::map<std::string, std::size_t> sizes;
  for (const auto& field : MergeStates::fields().tensors) {
    const auto* list = std::get_if<std::span<const TensorView> MergeStates::*>(&field.member);
    if (list != nullptr) sizes[std::string(field.name)] = (op.**list).size();
  }
  EXPECT_EQ(sizes, (std::map<std::string, std::size_t>{{"outs", 3}, {"lses", 2}}));
}

}  // namespace
}  // namespace flashmla
