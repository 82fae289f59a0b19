#include "average2d.hpp"

#include <algorithm>
#include <string>
#include <utility>

#include "decode2d.hpp"
#include "errors.hpp"

namespace segship {
namespace {

void activate_each(std::vector<Array<float>>& outputs, const std::string& activation) {
    for (Array<float>& output : outputs) {
        for (std::size_t n = 0; n < output.shape[0]; ++n) {
            activate(output.at(n), output.shape[1], output.stride(1), activation);
        }
    }
}

void add(std::vector<Array<float>>& total, const std::vector<Array<float>>& outputs) {
    if (total.size() != outputs.size()) throw PackageError("the ensemble's members give different outputs; export it again");
    for (std::size_t i = 0; i < total.size(); ++i) {
        if (total[i].shape != outputs[i].shape) {
            throw PackageError("the ensemble's members give outputs of different shapes; export it again");
        }
        std::transform(total[i].data.begin(), total[i].data.end(), outputs[i].data.begin(), total[i].data.begin(),
                       [](float a, float b) { return a + b; });
    }
}

}  // namespace

bool averages_probabilities(const Json& manifest) {
    const Json network = field<Json>(manifest, "network");
    return field<Json>(network, "members").size() > 1 &&
           field_or<std::string>(network, "member_average", "logits") == "probabilities";
}

std::vector<Array<float>> run_members(const std::vector<NetworkRun>& members, const Array<float>& x, const Json& manifest) {
    if (members.size() == 1) return members[0](x);
    const bool activated = averages_probabilities(manifest);
    const auto activation = field<std::string>(field<Json>(manifest, "decode"), "activation");
    std::vector<Array<float>> total;
    for (const NetworkRun& member : members) {
        std::vector<Array<float>> outputs = member(x);
        if (activated) activate_each(outputs, activation);
        if (total.empty()) {
            total = std::move(outputs);
        } else {
            add(total, outputs);
        }
    }
    for (Array<float>& array : total) {
        for (float& value : array.data) value /= static_cast<float>(members.size());
    }
    return total;
}

}  // namespace segship
