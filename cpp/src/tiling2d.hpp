#pragma once
// One prepared picture through the network: as a whole, or by mmseg's sliding window, whose logits are enlarged to the
// window, summed over the picture and divided by how many windows saw a pixel. src/segship/inference/windows.py in C++.

#include <cstddef>
#include <vector>

#include "array.hpp"
#include "json.hpp"

namespace segship {

// All outputs, each (K, ...), for one prepared picture (C, h, w). Windows go through `run` `batch` at a time; a side that
// the network does not take is filled up with zeros below and to the right, and cut off again.
std::vector<Array<float>> run_picture(const NetworkRun& run, const Array<float>& x, const Json& recipe, std::size_t batch);

}  // namespace segship
