//! The transport over real sockets: who is let in, what changes while it runs, how connections end.

mod answers;
mod certificates;
mod changes;
mod connections;
mod openssl;
mod setup;
