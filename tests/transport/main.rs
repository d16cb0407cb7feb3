//! The transport over real sockets: who is let in, what changes while it runs, how connections end.

mod certificates;
mod changes;
mod connections;
mod world;
