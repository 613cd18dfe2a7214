"""A small file of every trace format, and helpers of the trace tests."""

import json
import math
from pathlib import Path

from click.testing import CliRunner, Result

from ciar_sim.cli.main import main

ROOT = Path(__file__).resolve().parents[3]
REAL = ROOT.parent / "shared" / "traces"

GNETTRACK = """\
Timestamp,Longitude,NetworkMode,DL_bitrate,UL_bitrate,State,PINGAVG,PINGLOSS
2020.02.13_23.59.58,-8.3,5G,1000,10,D,-,-
2020.02.13_23.59.58,-8.3,5G,3000,10,D,50.0,0.0
2020.02.14_00.00.01,-8.3,LTE,-,10,I,-,-
2020.02.14_00.00.02,-8.3,LTE,0,50,D,70.0,19.0
"""
SABRE = '[{"duration_ms": 1000, "bandwidth_kbps": 2000, "latency_ms": 100}, {"duration_ms": 3000, "bandwidth_kbps": 0, "latency_ms": 100}]'
OPENNETLAB = """{"type": "video", "downlink": {}, "uplink": {"trace_pattern": [
 {"duration": 1000, "capacity": 500, "loss": 0.2, "rtt": 100, "jitter": 3}, {"duration": 1000, "capacity": 1500, "rtt": 0}]}}"""
PANTHEON = '{"timestamps": [0, 0.5, 1.0], "bandwidths": [1.0, 3.0, 9], "delays": [17.5], "loss": 0, "queue": 10}'
AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:17:03.9799600,4808,10\r\n2023-11-16 18:17:05.9799600,31,8"
)
BURSTGPT = """\
Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
9,GPT-4,8,0,8,API log
"""
GENTD26 = """\
gmt_create,predict_type,predict_status,exec_time_seconds,groupId
2024-11-15 16:57:50,TXT_2_IMG,SUCCEED,32.0,G0000
2024-11-15 16:57:50,TXT_2_IMG,FAILED,,G0001
2024-11-15 16:58:00,IMG_2_IMG,SUCCEED,1.0,G0001
"""
MOONCAKE = """\
{"timestamp": 0, "input_length": 10, "output_length": 5, "hash_ids": [0]}
{"timestamp": 0, "input_length": 20, "output_length": 6, "hash_ids": [0, 1]}
{"timestamp": 4000, "input_length": 30, "output_length": 7, "hash_ids": []}
"""
STARLINK = "20.0,100.0,30.0,40.0,0.0,0.1,500\n20.0,,200.0,200.0,1.0,1.0,600\n10.0,50.0,32.0,42.0,0.0,0.0,700\n"
BAILIAN = """\
{"chat_id": 0, "parent_chat_id": -1, "timestamp": 61.0, "input_length": 10, "output_length": 5, "type": "text", "turn": 1}
{"chat_id": 1, "parent_chat_id": -1, "timestamp": 61.5, "input_length": 20, "output_length": 6, "type": "text", "turn": 1}
{"chat_id": 2, "parent_chat_id": 0, "timestamp": 65, "input_length": 30, "output_length": 7, "type": "text", "turn": 2}
"""
VIDUR = ",arrived_at,num_prefill_tokens,num_decode_tokens\n0,0.25,32,8\n1,1.5,16,4\n2,2.25,16,4\n"
SPLITWISE = """\
request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size
0,2,0,0.5,1,512,128
1,2,0,4.5,1,64,32
"""
BLIS = """\
request_id,client_id,prefix_group,streaming,input_tokens,output_tokens,arrival_time_us,send_time_us,status
0,c1,,true,512,128,250000,1708100000000,ok
1,c1,,true,698,64,750000,,failed
"""
LLMSERVINGSIM = """\
{"input_toks": 10, "output_toks": 5, "arrival_time_ns": 46000000}
{"input_toks": 12, "output_toks": 6, "arrival_time_ns": 346000000}
"""
IPERF3 = json.dumps(
    {
        "start": {"test_start": {"protocol": "TCP", "reverse": 1, "omit": 1}},
        "intervals": [
            {"sum": {"start": 0.0, "end": 1.0, "seconds": 1.0, "bits_per_second": 9e6, "omitted": True}},
            {"sum": {"start": 1.0, "end": 2.0, "seconds": 1.0, "bits_per_second": 2e6, "omitted": False}},
            {"sum": {"start": 2.0, "end": 3.0, "seconds": 1.0, "bits_per_second": 4e6, "omitted": False}},
        ],
        "end": {},
    },
    indent=1,
)
PING = """\
PING host (192.0.2.1) 56(84) bytes of data.
64 bytes from 192.0.2.1: icmp_seq=1 ttl=55 time=20.0 ms
64 bytes from 192.0.2.1: icmp_seq=2 ttl=55 time=30 ms
no answer yet for icmp_seq=3
64 bytes from 192.0.2.1: icmp_seq=4 ttl=55 time=40.0 ms

--- host ping statistics ---
4 packets transmitted, 3 received, 25% packet loss, time 1500ms
rtt min/avg/max/mdev = 20.0/30.0/40.0/8.1 ms
"""
ATLAS = """[
{"fw": 5020, "msm_id": 1, "prb_id": 7, "timestamp": 1700000000, "type": "ping", "result": [{"rtt": 19}, {"rtt": 21}]},
{"fw": 5020, "msm_id": 1, "prb_id": 7, "timestamp": 1700000240, "type": "ping", "result": [{"rtt": 30.0}, {"x": "*"}]},
{"fw": 5020, "msm_id": 1, "prb_id": 7, "timestamp": 1700000480, "type": "ping", "result": [{"x": "*"}, {"x": "*"}]}]"""
DELAYS = "".join(f"{12 + (i * 7) % 5}\n" for i in range(100))
LIGHT = "0 20 0 1 3\n500 30 0 2 2\n1000 40 0\n"
OWN = "# a note\ntime_s,down_mbps,up_mbps,rtt_ms,loss_pct\n0,8,2,40,1\n1,,0,60,\n3,4,2,50,0\n"

# content, format, duration in s, mean down Mbit/s, mean up Mbit/s, mean RTT in ms, loss in %, packets; all calculated by hand
NETWORK = {
    "mahimahi": ("0\n0\n5\n5\n5\n10\n", "mahimahi", 0.010, 7.2, None, None, None, 6),
    "mahimahi, CRLF and blank lines at the end": ("3\r\n10\r\n\r\n\n", "mahimahi", 0.010, 2.4, None, None, None, 2),
    "delays": (DELAYS, "leoreplayer-delay", 1.0, None, None, 28.0, None, None),
    "time-rate": ("100.0\t9.0\n100.5\t1.0\n100.5\t7.0\n102.0\t3.0\n\n", "time-rate", 2.0, 2.5, None, None, None, None),
    "starlink": (
        STARLINK,
        "starlink-csv",
        0.3,
        250 / 3,
        50 / 3,
        (70 + 70 + 74) / 3,
        100 * (1.0 / 3 + 1.1 / 3) / 2,
        None,
    ),
    "gnettrack": (GNETTRACK, "gnettrack", 4.0, (1 + 3 + 3 + 0) / 4, 0.02, (50 + 50 + 50 + 70) / 4, 2.5, None),
    "ping": (
        "Probe Number,RTT [ms],Probe Send Time\n1,20,11:40:59\n2,30,11:41:00\n",
        "ping-csv",
        2.0,
        None,
        None,
        25.0,
        None,
        None,
    ),
    "ping text": (
        PING,
        "ping-text",
        2.0,
        None,
        None,
        (20 + 30 + 30 + 40) / 4,
        100 * (1.0 - math.sqrt(0.75)),
        None,
    ),
    "atlas": (
        ATLAS,
        "ripe-atlas",
        720.0,
        None,
        None,
        (20 + 30 + 30) / 3,
        100 * (0.0 + 1.0 - math.sqrt(0.5) + 1.0) / 3,
        None,
    ),
    "cellreplay": (LIGHT, "cellreplay-light", 1.0, None, None, None, None, None),
    "nyu-mets": (
        "1.5,Mbits/sec\n726,Kbits/sec\n0,bits/sec\n2,Mbits/sec\n",
        "nyu-mets-csv",
        4.0,
        4.226 / 4,
        None,
        None,
        None,
        None,
    ),
    "iperf3": (IPERF3, "iperf3-json", 2.0, 3.0, None, None, None, None),
    "sabre": (SABRE, "sabre-json", 4.0, 0.5, None, 100.0, None, None),
    "opennetlab": (OPENNETLAB, "opennetlab-json", 2.0, None, 1.0, 100.0, 20.0, None),
    "pantheon": (PANTHEON, "pantheon-json", 1.0, 2.0, None, 35.0, 0.0, None),
    "own": (
        OWN,
        "ciar-sim-csv",
        5.0,
        (8 + 2 * 8 + 2 * 4) / 5,
        (2 + 0 + 4) / 5,
        (40 + 120 + 100) / 5,
        (1 + 2 + 0) / 5,
        None,
    ),
}
ARRIVALS = {
    "azure": (AZURE, "azure-llm-csv", 2.0, 2),
    "burstgpt": (BURSTGPT, "burstgpt-csv", 4.0, 2),
    "gentd26": (GENTD26, "gentd26-csv", 10.0, 3),
    "mooncake": (MOONCAKE, "mooncake-jsonl", 4.0, 3),
    "bailian": (BAILIAN, "bailian-jsonl", 4.0, 3),
    "vidur": (VIDUR, "vidur-csv", 2.0, 3),
    "splitwise": (SPLITWISE, "splitwise-sim-csv", 4.0, 2),
    "blis": (BLIS, "blis-csv", 0.5, 2),
    "llmservingsim": (LLMSERVINGSIM, "llmservingsim-jsonl", 0.3, 2),
    "llmservingsim, tabs": (
        "input_toks\toutput_toks\tarrival_time_ns\n10\t5\t46000000\n12\t6\t346000000\n",
        "llmservingsim-csv",
        0.3,
        2,
    ),
    "own": ("requested_s,input_tokens\n0.5,3\n2.5,4\n", "ciar-sim-arrivals-csv", 2.0, 2),
}


def file(folder: Path, content: str | bytes, name: str = "trace.dat") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines_of(content: str) -> list[str]:
    return content.replace("\r\n", "\n").rstrip("\n").split("\n")


def call(*arguments: str | Path | float) -> Result:
    return CliRunner().invoke(main, ["traces", *map(str, arguments)])


def assert_refused(result: Result, named: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("Error: ")
    assert named in result.stderr
