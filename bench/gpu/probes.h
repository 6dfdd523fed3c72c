// The families that measure the device itself.
#pragma once

#include "harness.h"

namespace lapidary::bench {

void run_bandwidth(Session& session);
void run_matrix_units(Session& session);
void run_launches(Session& session);

}  // namespace lapidary::bench
