// flashmla info.
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>

#include "cli/backends.h"
#include "command.h"
#include "cuda/device.h"
#include "flashmla/kernels.h"

namespace flashmla::test {
namespace {

TEST(Info, TextNamesEveryKernel) {
  const Outcome outcome = run_tool({"info"});
  EXPECT_EQ(outcome.code, 0);
  EXPECT_EQ(outcome.err, "");
  for (const KernelInfo& kernel : cli::machine_kernels()) {
    EXPECT_NE(outcome.out.find(kernel.operation), std::string::npos) << kernel.operation;
    EXPECT_NE(outcome.out.find(kernel.name), std::string::npos) << kernel.name;
    EXPECT_NE(outcome.out.find(kernel.reason), std::string::npos) << kernel.reason;
  }
}

TEST(Info, JsonIsTheKernelTable) {
  const Outcome outcome = run_tool({"info", "--json"});
  EXPECT_EQ(outcome.code, 0);
  const nlohmann::json json = nlohmann::json::parse(outcome.out);
  EXPECT_GT(json.at("machine").at("cores").get<int>(), 0);
  EXPECT_FALSE(json.at("machine").at("cpu").get<std::string>().empty());
  EXPECT_FALSE(json.at("backends").empty());
  const std::vector<KernelInfo> table = cli::machine_kernels();
  ASSERT_EQ(json.at("kernels").size(), table.size());
  for (std::size_t i = 0; i < table.size(); ++i) {
    const nlohmann::json& row = json.at("kernels").at(i);
    EXPECT_EQ(row.at("operation"), table[i].operation);
    EXPECT_EQ(row.at("name"), table[i].name);
    EXPECT_EQ(row.at("available"), table[i].available);
  }
}

TEST(Info, ListsKernelsForGpusWithWhatTheyNeed) {
  const nlohmann::json json = nlohmann::json::parse(run_tool({"info", "--json"}).out);
  EXPECT_EQ(json.at("gpus").size(), static_cast<std::size_t>(cuda::device_count()));
  int found = 0;
  for (const nlohmann::json& row : json.at("kernels")) {
    if (row.at("backend") != "portable") continue;
    ++found;
    EXPECT_EQ(row.at("available"), cuda::device_count() > 0);
    if (cuda::device_count() == 0) {
      EXPECT_TRUE(row.at("reason") == "no device" || row.at("reason") == "built without CUDA") << row;
    }
  }
  EXPECT_GE(found, 2);
}

TEST(Info, SaysWhetherTheTilesOfTheProcessorAreUsed) {
  const nlohmann::json json = nlohmann::json::parse(run_tool({"info", "--json"}).out);
  std::ifstream file("/proc/cpuinfo");
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const bool has_tiles = text.find(" amx_bf16") != std::string::npos;
  EXPECT_EQ(json.at("machine").at("amx_bf16"), has_tiles);
  const bool uses_tiles = json.at("machine").at("instruction_set") == "amx_bf16";
  const std::string shown = run_tool({"info"}).out;
  EXPECT_EQ(shown.find("amx_bf16: yes, used") != std::string::npos, uses_tiles) << shown;
  EXPECT_EQ(shown.find("amx_bf16: yes, not used") != std::string::npos, has_tiles && !uses_tiles) << shown;
}

}  // namespace
}  // namespace flashmla::test
