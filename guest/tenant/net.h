/* Ethernet, ARP, IPv4, ICMP echo and UDP: as much as it takes to answer. Nothing is ever sent but in
 * answer to a frame, to the machine that sent it, so there is no neighbour table and no route. */

#ifndef NET_H
#define NET_H

#include "types.h"

/* Sets the own addresses; `address` in network byte order. */
void net_init(const u8 mac[6], u32 address);

/* Queues a gratuitous ARP: switches and neighbours learn where the address is. */
void net_announce(void);

/* Handles one frame and queues what answers it. The caller made sure of room for UDP_MOST_REPLIES
 * frames. Up to FRAME_SLACK bytes behind the frame may be read, and overwritten. */
void net_receive(u8 *frame, u32 length);

/* The frames that answer one datagram, at most. */
#define UDP_MOST_REPLIES 16

/* The largest payload of a datagram in one frame. */
#define UDP_PAYLOAD_MOST 1472

/* A received datagram. `payload` follows its UDP header, and eight zero bytes follow the payload. */
struct datagram {
    const struct ip_headers *headers;
    u8 *payload;
    u32 length;
};

/* Ethernet, IPv4 without options, UDP. */
#define UDP_HEADERS 42

/* Where the payload of a reply goes. */
static inline u8 *udp_reply_payload(u8 *frame)
{
    return frame + UDP_HEADERS;
}

/* Fills in the headers and queues the frame. Overwrites eight bytes behind the payload. */
void udp_reply_send(const struct datagram *request, u8 *frame, u32 length);

#endif
