"""Which texts about a machine may be published."""

from __future__ import annotations

import pytest

from engine.attestation.public_text import is_public_text

PUBLIC = (
    "",
    "Intel(R) Xeon(R) CPU @ 2.20GHz",
    "NVIDIA GeForce RTX 4090",
    "AMD EPYC 7B13 64-Core Processor",
    "GPU-8f3b2c1d-0000-1111-2222-333344445555",
    "550.54.15",
    "00000000:01:00.0",
    "trainer: 297768 KiB marked",
    "failed:EPERM",
    "abi 7, binds 1 of 3 tasks",
    "torch 2.13.0+cpu",
    "glasshouse-8ea12bd0-2c8992486c2a-5dc03fc9",
    "1/2 of the maps",
    "NVIDIA H100 80GB HBM3",
    "mlx5_0",
    "AMD Ryzen 9 7950X 16-Core Processor",
    "glasshouse-worker",
    "2026-05-17T14:03:20.123Z",
    "NIST SP 800-88 Clear",
    "failed:EPERM at once",
    "sm_90",
)
PRIVATE = (
    "fe80::1",
    "at ::1",
    "10.0.0.1.",
    "root@gpu-box",
    "node17.internal.corp.example.com",
    "[/root/.ssh/id]",
    "gpu;/home/alice/x",
    "../home/alice/x",
    "$HOME/x",
    "a/b/c",
    "hf_abcdef",
    "rpa_ABC123",
    "https://x.proxy.runpod.net",
    "www.example.org",
    "10.0.0.12",
    "root at 192.168.1.7 port 22",
    "fe80:0:0:0:1:2:3:4",
    "/home/alice/models",
    "cannot open /etc/shadow",
    "path=/srv/data",
    "~/secrets",
    "C:\\Users\\alice",
    "alice@host.example",
    "ssh-ed25519 AAAAC3Nza",
    "-----BEGIN OPENSSH PRIVATE KEY-----",
    "line\nbreak",
    "ümlaut",
    "\x1b[31m",
    "x" * 257,
)


@pytest.mark.parametrize("text", PUBLIC)
def test_names_and_measures_are_public(text: str) -> None:
    assert is_public_text(text)


@pytest.mark.parametrize("text", PRIVATE)
def test_addresses_paths_and_credentials_are_not_public(text: str) -> None:
    assert not is_public_text(text)
