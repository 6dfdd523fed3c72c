// Ways to spoil a sample: in its parts (numbers, names, offsets, counts), and in its bytes.
#pragma once

#include <map>
#include <string>

#include "random.h"
#include "samples.h"

namespace lapidary::fuzz {

void spoil_parts(Sample& sample, Random& random);
void spoil_bytes(std::string& bytes, Random& random);

}  // namespace lapidary::fuzz
