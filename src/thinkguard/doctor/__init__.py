"""The doctor: finds where thinking gets lost, as checks that a program can read."""

from thinkguard.doctor.check import Check as Check
from thinkguard.doctor.check import Report as Report
