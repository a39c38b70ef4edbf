#!/usr/bin/env python3
"""Shows that check_arrows catches violations that are planted, and lets right uses pass."""

import pathlib
import tempfile
import unittest

import check_arrows


class CheckArrowsTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)

    def plant(self, path, text):
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")

    def problems(self):
        return check_arrows.check(self.root)

    def test_right_uses_pass(self):
        self.plant("common/clock.h", "#include <vector>\n#include \"absl/time/time.h\"\n")
        self.plant("model/engine.cc", '#include "kernels/gemm.h"\n#include "common/clock.h"\n')
        self.plant("gateway/core.cc", '#include "model/config.h"\n'
                                      '#include "blockserve/v1/generation.pb.h"\n')
        self.plant("app/main.cc", '#include "gateway/gateway.h"\n#include "model/engine.h"\n')
        self.plant("model/CMakeLists.txt", "blockserve_library(blockserve_model_config SOURCES a.cc)\n")
        self.plant("gateway/CMakeLists.txt",
                   "blockserve_library(blockserve_gateway DEPS blockserve_model_config)\n")
        self.assertEqual(self.problems(), [])

    def assert_caught(self, *words):
        problems = self.problems()
        self.assertEqual(len(problems), 1, problems)
        for word in words:
            self.assertIn(word, problems[0])

    def test_a_lower_folder_that_includes_a_higher_one(self):
        self.plant("kernels/cpu/gemm.cc", '\n#include "model/config.h"\n')
        self.assert_caught("kernels/cpu/gemm.cc:2", "not model/")

    def test_services_that_include_one_another(self):
        self.plant("block_service/batch.cc", '#include "token_service/batch.h"\n')
        self.assert_caught("not token_service/")

    def test_a_gateway_that_includes_the_engine(self):
        self.plant("gateway/core.cc", '#include "model/engine.h"\n')
        self.assert_caught("gateway/core.cc:1", "only model/alignment.h, model/config.h")

    def test_a_gateway_that_links_the_engine(self):
        self.plant("model/CMakeLists.txt", "blockserve_library(blockserve_model SOURCES a.cc)\n")
        self.plant("gateway/CMakeLists.txt",
                   "blockserve_library(blockserve_gateway\n  DEPS blockserve_model)\n")
        self.assert_caught("gateway/CMakeLists.txt:2", "may link only")

    def test_a_model_that_includes_protos(self):
        self.plant("model/config.cc", '#  include <blockserve/v1/tier.pb.h>\n')
        self.assert_caught("not proto/")

    def test_a_library_that_includes_the_app(self):
        self.plant("client/client.cc", '#include "app/serve.h"\n')
        self.assert_caught("nothing may use app/")

    def test_an_include_that_is_not_rooted(self):
        self.plant("rpc/server.cc", '#include "server.h"\n')
        self.assert_caught("rooted at the repository")


if __name__ == "__main__":
    unittest.main()
