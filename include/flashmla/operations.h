// The operations as a list of types, for code that treats all of them alike.
#pragma once

#include "flashmla/append_kv.h"
#include "flashmla/dense_decode.h"
#include "flashmla/dequantize_kv.h"
#include "flashmla/merge_states.h"
#include "flashmla/mha_backward.h"
#include "flashmla/mha_forward.h"
#include "flashmla/quantize_kv.h"
#include "flashmla/schedule.h"
#include "flashmla/sparse_decode.h"
#include "flashmla/sparse_prefill.h"

namespace flashmla {

template <class... Ops>
struct OperationList {
  /// Calls `visit.template operator()<Op>()` for each operation in order.
  template <class Visit>
  static void for_each(Visit&& visit) {
    (visit.template operator()<Ops>(), ...);
  }
};

using Operations = OperationList<DenseDecode, SparseDecode, SparsePrefill, MhaForward, MhaBackward,
                                 QuantizeKv, DequantizeKv, AppendKv, MergeStates, MakeSchedule>;

}  // namespace flashmla
