// What the per-instruction-set sources need from outside their namespace.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "../class_code.h"
#include "../modulation.h"
#include "../partial_lse.h"
#include "center_gradient.h"
#include "head_step.h"
#include "sweep.h"
#include "workspace.h"
