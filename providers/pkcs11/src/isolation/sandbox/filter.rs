//! The system calls that no PKCS#11 module needs, refused by seccomp with `EPERM`.
//!
//! A list of what is refused, and not of what is allowed: a vendor's library is free in what it calls,
//! but never starts programs, looks into other processes, mounts, loads code into the kernel or makes
//! name spaces.

use std::collections::BTreeMap;

use claviger_provider_api::Measure;
use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition,
    SeccompFilter, SeccompRule,
};

use crate::config::Config;

/// Refused whatever their arguments are.
const REFUSED: [c_long; 40] = [
    // Other programs.
    libc::SYS_execve,
    libc::SYS_execveat,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_kcmp,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_tkill,
    // File systems and name spaces.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_unshare,
    libc::SYS_setns,
    // The kernel.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // Other ways to the calls above.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
];

/// Flags of clone(2) that make name spaces: `CLONE_NEWTIME` to `CLONE_NEWNET`.
const NEW_NAME_SPACES: u64 = 0x7e02_0080;

/// Socket families that stay on the host: `AF_UNIX`, `AF_NETLINK`, `AF_ALG`.
const LOCAL_FAMILIES: [i32; 3] = [libc::AF_UNIX, libc::AF_NETLINK, libc::AF_ALG];

/// Refuses them from now on, in this thread and those that it starts.
pub(super) fn measure(config: &Config) -> Measure {
    let network = config.sandbox.network;
    let what = if network {
        "no programs, no other processes, no mounts, no kernel modules; the network is allowed"
    } else {
        "no programs, no other processes, no mounts, no kernel modules, no network (sandbox.network)"
    };
    super::measure("seccomp", what, apply(network))
}

fn apply(network: bool) -> Result<(), String> {
    let own_pid = u64::from(rustix::process::getpid().as_raw_pid().cast_unsigned());
    for (rules, errno) in [
        (refused(network, own_pid).map_err(|error| error.to_string())?, libc::EPERM),
        // Its flags lie in memory, where no filter sees them; the C library then uses clone(2).
        (BTreeMap::from([(libc::SYS_clone3, Vec::new())]), libc::ENOSYS),
    ] {
        let action = SeccompAction::Errno(errno.cast_unsigned());
        let arch = std::env::consts::ARCH;
        let arch = arch.try_into().map_err(|_| format!("not known on {arch}"))?;
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, action, arch);
        let program: BpfProgram =
            filter.and_then(TryInto::try_into).map_err(|error| error.to_string())?;
        seccompiler::apply_filter(&program).map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn refused(
    network: bool,
    own_pid: u64,
) -> Result<BTreeMap<c_long, Vec<SeccompRule>>, seccompiler::BackendError> {
    let mut rules: BTreeMap<_, _> = REFUSED.into_iter().map(|call| (call, Vec::new())).collect();
    let when =
        |argument, operator, value| SeccompCondition::new(argument, Len::Dword, operator, value);
    let new_name_space = |flag: u64| SeccompRule::new(vec![when(0, Op::MaskedEq(flag), flag)?]);
    let flags = (0..32).map(|bit| 1 << bit).filter(|flag| NEW_NAME_SPACES & flag != 0);
    rules.insert(libc::SYS_clone, flags.map(new_name_space).collect::<Result<_, _>>()?);
    // Signal 0 only asks whether a process is there.
    let to_others = vec![when(0, Op::Ne, own_pid)?, when(1, Op::Ne, 0)?];
    rules.insert(libc::SYS_kill, vec![SeccompRule::new(to_others)?]);
    for call in [libc::SYS_tgkill, libc::SYS_rt_sigqueueinfo, libc::SYS_rt_tgsigqueueinfo] {
        rules.insert(call, vec![SeccompRule::new(vec![when(0, Op::Ne, own_pid)?])?]);
    }
    if !network {
        let elsewhere = LOCAL_FAMILIES
            .iter()
            .map(|family| when(0, Op::Ne, u64::from(family.cast_unsigned())))
            .collect::<Result<_, _>>()?;
        rules.insert(libc::SYS_socket, vec![SeccompRule::new(elsewhere)?]);
    }
    Ok(rules)
}
