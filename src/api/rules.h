// What the declared types and shapes of an operation cannot say.
#pragma once

#include "flashmla/operations.h"

namespace flashmla {

/// Rules between fields (`h_q` is a multiple of `h_kv`, both or none of two tensors are given). Reads
/// no tensor. Throws Error.
void check_rules(const DenseDecode& op);
void check_rules(const SparseDecode& op);
void check_rules(const SparsePrefill& op);
void check_rules(const MhaForward& op);
void check_rules(const MhaBackward& op);
void check_rules(const QuantizeKv& op);
void check_rules(const DequantizeKv& op);
void check_rules(const AppendKv& op);
void check_rules(const MergeStates& op);
void check_rules(const MakeSchedule& op);

/// Reads the index tensors of a checked operation on the CPU; throws Error for the first value that a
/// kernel would mask, with tensor, position and value. -1 in `indices`, `extra_indices` and
/// `slot_mapping` is padding.
void check_indices(const DenseDecode& op);
void check_indices(const SparseDecode& op);
void check_indices(const SparsePrefill& op);
void check_indices(const MhaForward& op);
void check_indices(const MhaBackward& op);
void check_indices(const QuantizeKv& op);
void check_indices(const DequantizeKv& op);
void check_indices(const AppendKv& op);
void check_indices(const MergeStates& op);
void check_indices(const MakeSchedule& op);

}  // namespace flashmla
