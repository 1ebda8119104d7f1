"""Tests by kind: unit, integration (real servers), system (whole programs); support code."""
