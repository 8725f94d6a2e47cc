"""Django's own tests of migrations, the ORM and its PostgreSQL backend, from its source distribution."""

import json

from workshop import Outcome

# Of the 200 suites, those that ask most of the database.
LABELS = [
    "migrations", "schema", "basic", "bulk_create", "transactions", "transaction_hooks",
    "introspection", "select_for_update", "aggregation", "expressions", "queries", "many_to_many",
    "lookup", "get_or_create", "delete", "update", "postgres_tests", "backends.postgresql",
    "db_functions.datetime", "prefetch_related", "select_related", "model_fields.test_jsonfield",
    "constraints", "db_utils",
]
# A database of pgward's is one of its map: the tests take the one that there is.
SETTINGS = '''
import os
_COMMON = {"ENGINE": "django.db.backends.postgresql", "NAME": os.environ["PGDATABASE"],
           "USER": "postgres", "HOST": "127.0.0.1", "PORT": os.environ["PGPORT"]}
DATABASES = {"default": {**_COMMON, "TEST": {"NAME": os.environ["PGDATABASE"]}},
             "other": {**_COMMON, "TEST": {"MIRROR": "default"}}}
SECRET_KEY = "conformance"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
USE_TZ = False
TEST_RUNNER = "conformance_runner.Runner"
'''
RUNNER = '''
import json, os, unittest
from django.test.runner import DiscoverRunner

class Result(unittest.TextTestResult):
    outcomes = {}
    def note(self, test, status, why=""):
        old = self.outcomes.get(test.id())
        if old is None or old[0] in ("pass", "skip"):
            self.outcomes[test.id()] = (status, why)
    def addSuccess(self, test):
        super().addSuccess(test); self.note(test, "pass")
    def addError(self, test, err):
        super().addError(test, err); self.note(test, "fail", f"{err[0].__name__}: {err[1]}")
    def addFailure(self, test, err):
        super().addFailure(test, err); self.note(test, "fail", f"{err[0].__name__}: {err[1]}")
    def addSkip(self, test, reason):
        super().addSkip(test, reason); self.note(test, "skip", reason)
    def addExpectedFailure(self, test, err):
        super().addExpectedFailure(test, err); self.note(test, "pass")
    def addUnexpectedSuccess(self, test):
        super().addUnexpectedSuccess(test); self.note(test, "fail", "unexpected success")
    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err is not None: self.note(test, "fail", f"{err[0].__name__}: {err[1]}")

class Runner(DiscoverRunner):
    def get_resultclass(self):
        return Result
    def run_suite(self, suite, **kwargs):
        result = super().run_suite(suite, **kwargs)
        with open(os.environ["CONFORMANCE_REPORT"], "w") as report:
            json.dump(Result.outcomes, report)
        return result
'''


def prepare(workshop):
    workshop.sdist("django", workshop.version("Django"))


def run(workshop, target):
    source = workshop.sdist("django", workshop.version("Django"))
    (target.directory / "conformance_settings.py").write_text(SETTINGS)
    (target.directory / "conformance_runner.py").write_text(RUNNER)
    report = target.directory / "report.json"
    path = f"{source}:{target.directory}"
    env = target.environment(PYTHONPATH=path, CONFORMANCE_REPORT=report)
    text, _ = target.run(
        "runtests",
        [workshop.python, "runtests.py", "--settings=conformance_settings", "--parallel=1",
         "--keepdb", "--noinput", *LABELS],
        cwd=source / "tests", env=env)
    if not report.exists():
        raise RuntimeError(f"runtests.py: {text[-1000:]}")
    return {test: Outcome(status, why[:300].replace("\n", " "))
            for test, (status, why) in json.loads(report.read_text()).items()}
