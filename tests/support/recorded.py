"""What SLURM's tools printed on three clusters, cut to what is read, and the limits it amounts to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from latentbridge.launch.slurm.limits import Limits, make_limits
from latentbridge.launch.slurm.text import parse_config

CONFIG_2205 = """\
Configuration data as of 2026-11-22T14:06:28
AccountingStorageEnforce = associations,limits,qos
AccountingStorageType   = accounting_storage/slurmdbd
AuthInfo                = socket=/run/munge/socket,cred_expire=5
ClusterName             = testcluster
EnforcePartLimits       = NO
JobRequeue              = 1
KillWait                = 30 sec
MaxArraySize            = 1001
MaxJobCount             = 10000
MinJobAge               = 300 sec
PreemptMode             = REQUEUE
PreemptType             = preempt/partition_prio
SlurmctldParameters     = (null)
SLURM_VERSION           = 22.05.8

Slurmctld(primary) at login1 is UP
"""
PARTITIONS_2205 = """\
PartitionName=low AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL AllocNodes=ALL Default=NO QoS=N/A DefaultTime=00:10:00 DisableRootJobs=NO ExclusiveUser=NO GraceTime=0 Hidden=NO MaxNodes=UNLIMITED MaxTime=1-00:00:00 MinNodes=0 LLN=NO MaxCPUsPerNode=UNLIMITED Nodes=gpu[01-03] PriorityJobFactor=1 PriorityTier=1 RootOnly=NO ReqResv=NO OverSubscribe=NO OverTimeLimit=NONE PreemptMode=REQUEUE State=UP TotalCPUs=96 TotalNodes=3 SelectTypeParameters=NONE JobDefaults=(null) DefMemPerNode=UNLIMITED MaxMemPerNode=UNLIMITED TRES=cpu=96,mem=1.50T,node=3,billing=96,gres/gpu=12,gres/gpu:h100=12
PartitionName=main AllowGroups=ALL AllowAccounts=lab,guests AllowQos=ALL AllocNodes=ALL Default=YES QoS=short DefaultTime=00:10:00 DisableRootJobs=NO ExclusiveUser=NO GraceTime=90 Hidden=NO MaxNodes=2 MaxTime=02:00:00 MinNodes=0 LLN=NO MaxCPUsPerNode=UNLIMITED Nodes=gpu[01-02] PriorityJobFactor=1 PriorityTier=10 RootOnly=NO ReqResv=NO OverSubscribe=NO OverTimeLimit=NONE PreemptMode=OFF State=UP TotalCPUs=64 TotalNodes=2
PartitionName=old AllowGroups=ALL AllowAccounts=ALL DenyQos=short AllocNodes=ALL Default=NO QoS=N/A MaxNodes=UNLIMITED MaxTime=UNLIMITED Nodes=gpu03 PreemptMode=OFF State=DOWN TotalCPUs=32 TotalNodes=1
"""  # noqa: E501
NODES_2205 = """\
NodeName=gpu01 Arch=x86_64 CoresPerSocket=32  CPUAlloc=0 CPUEfctv=30 CPUTot=32 CPULoad=0.36 AvailableFeatures=ib,rack1 ActiveFeatures=ib,rack1 Gres=gpu:h100:4(S:0-1) NodeAddr=127.0.0.1 NodeHostName=vm Port=28053 Version=22.05.8 OS=Linux 6.18.44 #1 SMP PREEMPT_DYNAMIC @0  RealMemory=524288 AllocMem=0 FreeMem=23162 Sockets=1 Boards=1 MemSpecLimit=4096 State=IDLE ThreadsPerCore=1 TmpDisk=0 Weight=1 Owner=N/A MCS_label=N/A Partitions=low,main  BootTime=2026-11-22T11:01:39 CfgTRES=cpu=32,mem=512G,billing=32,gres/gpu=4,gres/gpu:h100=4 AllocTRES= CapWatts=n/a
NodeName=gpu02 Arch=x86_64 CPUAlloc=0 CPUEfctv=32 CPUTot=32 AvailableFeatures=ib ActiveFeatures=ib Gres=gpu:h100:4(S:0,1),nvme:1 RealMemory=524288 State=MIXED+DRAIN ThreadsPerCore=1 Partitions=low,main Reason=bad disk, State=IDLE soon [root@2026-11-21T10:00:00]
NodeName=gpu03 Arch=x86_64 CPUAlloc=0 CPUEfctv=16 CPUTot=16 AvailableFeatures=(null) ActiveFeatures=(null) Gres=gpu:a100:2,gpu:2 RealMemory=262144 State=ALLOCATED ThreadsPerCore=1 Partitions=low,old
"""  # noqa: E501
USER_2205 = """\
User|Def Acct|Admin|Cluster|Account|Partition|Share|Priority|MaxJobs|MaxNodes|MaxCPUs|MaxSubmit|MaxWall|MaxCPUMins|QOS|Def QOS
ada|lab|None|testcluster|lab||1|||||40|||normal,short|normal
ada|lab|None|testcluster|guests|main|1||||||2-00:00:00||normal|
ada|lab|None|elsewhere|far||1||||||||normal|
"""  # noqa: E501
QOS_2205 = """\
Name|Priority|GraceTime|Preempt|PreemptExemptTime|PreemptMode|Flags|UsageThres|UsageFactor|GrpTRES|GrpTRESMins|GrpTRESRunMins|GrpJobs|GrpSubmit|GrpWall|MaxTRES|MaxTRESPerNode|MaxTRESMins|MaxWall|MaxTRESPU|MaxJobsPU|MaxSubmitPU|MaxTRESPA|MaxJobsPA|MaxSubmitPA|MinTRES
normal|0|00:00:00|||cluster|||1.000000||||||||||||||||
short|10|00:01:30|||requeue|DenyOnLimit||1.000000|cpu=900,gres/gpu=24|||||||||00:05:00|gres/gpu=4,node=2||25||||
"""

CONFIG_2411 = """\
Configuration data as of 2026-11-25T15:26:58
AccountingStorageEnforce = associations,limits,qos
AccountingStorageType   = accounting_storage/slurmdbd
ClusterName             = testcluster
EnforcePartLimits       = NO
JobRequeue              = 1
KillWait                = 3 sec
MaxArraySize            = 1001
MaxBatchRequeue         = 5
MaxJobCount             = 10000
MinJobAge               = 300 sec
PreemptMode             = REQUEUE
PreemptType             = preempt/partition_prio
SlurmctldParameters     = (null)
SLURM_VERSION           = 24.11.5
TLSType                 = tls/none

Cgroup Support Configuration:
CgroupPlugin            = cgroup/v1

Slurmctld(primary) at vm is UP
"""
PARTITIONS_2411 = """\
PartitionName=low AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL AllocNodes=ALL Default=NO QoS=N/A DefaultTime=00:10:00 DisableRootJobs=NO ExclusiveUser=NO ExclusiveTopo=NO GraceTime=0 Hidden=NO MaxNodes=UNLIMITED MaxTime=1-00:00:00 MinNodes=0 LLN=NO MaxCPUsPerNode=UNLIMITED MaxCPUsPerSocket=UNLIMITED Nodes=gpu[01-03] PriorityJobFactor=1 PriorityTier=1 RootOnly=NO ReqResv=NO OverSubscribe=NO OverTimeLimit=NONE PreemptMode=REQUEUE State=UP TotalCPUs=96 TotalNodes=3 SelectTypeParameters=NONE JobDefaults=(null) DefMemPerNode=UNLIMITED MaxMemPerNode=UNLIMITED TRES=cpu=96,mem=1.50T,node=3,billing=96,gres/gpu=12,gres/gpu:h100=12
"""  # noqa: E501
NODES_2411 = """\
NodeName=gpu01 Arch=x86_64 CoresPerSocket=32  CPUAlloc=0 CPUEfctv=32 CPUTot=32 CPULoad=1.88 AvailableFeatures=(null) ActiveFeatures=(null) Gres=gpu:h100:4 NodeAddr=127.0.0.1 NodeHostName=vm Port=30053 Version=24.11.5 OS=Linux 6.18.44-fc-v657 #1 SMP PREEMPT_DYNAMIC @0  RealMemory=524288 AllocMem=0 FreeMem=20948 Sockets=1 Boards=1 State=IDLE+DRAIN ThreadsPerCore=1 TmpDisk=0 Weight=1 Owner=N/A MCS_label=N/A Partitions=low,main,high  BootTime=2026-11-25T15:17:05 SlurmdStartTime=2026-11-25T15:26:01 LastBusyTime=2026-11-25T15:28:59 ResumeAfterTime=None CfgTRES=cpu=32,mem=512G,billing=32,gres/gpu=4,gres/gpu:h100=4 AllocTRES= CurrentWatts=0 AveWatts=0  Reason=test [root@2026-11-25T15:29:00]
NodeName=gpu02 Arch=x86_64 CoresPerSocket=32  CPUAlloc=0 CPUEfctv=32 CPUTot=32 CPULoad=1.98 AvailableFeatures=(null) ActiveFeatures=(null) Gres=gpu:h100:4 NodeAddr=127.0.0.1 NodeHostName=vm Port=30054 Version=24.11.5 OS=Linux 6.18.44-fc-v657 #1 SMP PREEMPT_DYNAMIC @0  RealMemory=524288 AllocMem=0 FreeMem=21051 Sockets=1 Boards=1 State=IDLE ThreadsPerCore=1 TmpDisk=0 Weight=1 Owner=N/A MCS_label=N/A Partitions=low,main,high  BootTime=2026-11-25T15:17:05 SlurmdStartTime=2026-11-25T15:26:01 LastBusyTime=2026-11-25T15:26:01 ResumeAfterTime=None CfgTRES=cpu=32,mem=512G,billing=32,gres/gpu=4,gres/gpu:h100=4 AllocTRES= CurrentWatts=0 AveWatts=0 
"""  # noqa: E501
USER_2411 = """\
User|Def Acct|Admin|Cluster|Account|Partition|Share|Priority|MaxJobs|MaxNodes|MaxCPUs|MaxSubmit|MaxWall|MaxCPUMins|QOS|Def QOS
root|lab|Administrator|testcluster|root||1||||||||normal|
root|lab|Administrator|testcluster|lab||1||||||||normal,short|normal
"""  # noqa: E501
QOS_2411 = """\
Name|Priority|GraceTime|Preempt|PreemptExemptTime|PreemptMode|Flags|UsageThres|UsageFactor|GrpTRES|GrpTRESMins|GrpTRESRunMins|GrpJobs|GrpSubmit|GrpWall|MaxTRES|MaxTRESPerNode|MaxTRESMins|MaxWall|MaxTRESPU|MaxJobsPU|MaxSubmitPU|MaxTRESPA|MaxTRESRunMinsPA|MaxTRESRunMinsPU|MaxJobsPA|MaxSubmitPA|MinTRES
normal|0|00:00:00|||cluster|||1.000000|||||||||||||||||||
short|10|00:00:00|||cluster|||1.000000||||||||||00:05:00|gres/gpu=4||||||||
"""

CONFIG_2511 = """\
Configuration data as of 2026-04-21T06:19:30
AccountingStorageEnforce = none
AccountingStorageType   = (null)
ClusterName             = linux
EnforcePartLimits       = ANY
JobRequeue              = 0
KillWait                = 30 sec
MaxArraySize            = 5000
MaxJobCount             = 200000
MinJobAge               = 20 sec
PreemptMode             = OFF
PreemptType             = (null)
SlurmctldParameters     = enable_configless,preempt_send_user_signal
SLURM_VERSION           = 25.11.4
TLSType                 = tls/none
"""
PARTITIONS_2511 = """\
PartitionName=gpu nodes (amd) AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL AllocNodes=ALL Default=YES QoS=N/A DefaultTime=NONE DisableRootJobs=NO ExclusiveUser=NO ExclusiveTopo=NO GraceTime=0 Hidden=NO MaxNodes=UNLIMITED MaxTime=UNLIMITED MinNodes=0 LLN=NO MaxCPUsPerNode=UNLIMITED MaxCPUsPerSocket=UNLIMITED NodeSets=ALL Nodes=(null) PriorityJobFactor=1 PriorityTier=1 RootOnly=NO ReqResv=NO OverSubscribe=NO OverTimeLimit=NONE PreemptMode=OFF State=UP TotalCPUs=0 TotalNodes=0 SelectTypeParameters=NONE JobDefaults=(null) DefMemPerNode=UNLIMITED MaxMemPerNode=UNLIMITED TRES=(null)
"""  # noqa: E501
NODES_2511 = """\
NodeName=c1 Arch=aarch64 CoresPerSocket=12  CPUAlloc=0 CPUEfctv=12 CPUTot=12 CPULoad=0.26 AvailableFeatures=cpu ActiveFeatures=cpu Gres=(null) NodeAddr=172.20.0.7 NodeHostName=c1 Version=25.11.4 OS=Linux 6.10.14-linuxkit #1 SMP Thu Aug 14 19:26:13 UTC 2025  RealMemory=7837 AllocMem=0 FreeMem=404 Sockets=1 Boards=1 State=IDLE+CLOUD+POWERED_DOWN ThreadsPerCore=1 TmpDisk=0 Weight=1 Partitions=cpu  BootTime=2026-04-18T16:55:46 LastBusyTime=2026-04-21T06:06:22 ResumeAfterTime=None CfgTRES=cpu=12,mem=7837M,billing=12 AllocTRES= CurrentWatts=0 AveWatts=0
NodeName=c2 Gres=gpu:1g.5gb:7,shard:8
"""  # noqa: E501


def limits_2205(**changes: Any) -> Limits:
    """A cluster of three nodes with accounting, SLURM 22.05."""
    made = make_limits(
        parse_config(CONFIG_2205.splitlines()),
        partitions=PARTITIONS_2205.splitlines(),
        nodes=NODES_2205.splitlines(),
        user=USER_2205.splitlines(),
        qos=QOS_2205.splitlines(),
    )
    return replace(made, **changes)


def limits_2411() -> Limits:
    """slurm/testcluster with SLURM 24.11, its first node drained."""
    return make_limits(
        parse_config(CONFIG_2411.splitlines()),
        partitions=PARTITIONS_2411.splitlines(),
        nodes=NODES_2411.splitlines(),
        user=USER_2411.splitlines(),
        qos=QOS_2411.splitlines(),
    )


def limits_2511() -> Limits:
    """A cluster without accounting, SLURM 25.11."""
    return make_limits(
        parse_config(CONFIG_2511.splitlines()),
        partitions=PARTITIONS_2511.splitlines(),
        nodes=NODES_2511.splitlines(),
        user=None,
        qos=None,
    )
