#include "net.h"

#include "checksum.h"
#include "control.h"
#include "kv.h"
#include "virtio_net.h"

enum {
    ETHERTYPE_IPV4 = 0x0800,
    ETHERTYPE_ARP = 0x0806,
    ARP_ETHERNET = 1,
    ARP_REQUEST = 1,
    ARP_REPLY = 2,
    VERSION_4_HEADER_20 = 0x45,
    DONT_FRAGMENT = 0x4000,
    MORE_FRAGMENTS_AND_OFFSET = 0x3fff,
    TTL = 64,
    PROTOCOL_ICMP = 1,
    PROTOCOL_UDP = 17,
    ICMP_ECHO_REPLY = 0,
    ICMP_ECHO = 8,
    PORT_ECHO = 7,
    PORT_CONTROL = 9,
    PORT_KV = 11211,
};

struct ethernet {
    u8 to[6], from[6];
    u16 type;
} PACKED;

/* RFC 826, for IPv4 over Ethernet. */
struct arp {
    struct ethernet ethernet;
    u16 hardware, protocol;
    u8 hardware_length, protocol_length;
    u16 operation;
    u8 sender_mac[6];
    u32 sender_address;
    u8 target_mac[6];
    u32 target_address;
} PACKED;

/* RFC 791 */
struct ipv4 {
    u8 version_length, service;
    u16 total_length, identification, fragment;
    u8 ttl, protocol;
    u16 checksum;
    u32 source, destination;
} PACKED;

/* RFC 792 */
struct icmp {
    u8 type, code;
    u16 checksum;
    u32 rest;
} PACKED;

/* RFC 768 */
struct udp {
    u16 source, destination, length, checksum;
} PACKED;

struct ip_headers {
    struct ethernet ethernet;
    struct ipv4 ip;
} PACKED;

struct udp_headers {
    struct ethernet ethernet;
    struct ipv4 ip;
    struct udp udp;
} PACKED;

_Static_assert(sizeof(struct arp) == 42, "RFC 826");
_Static_assert(sizeof(struct udp_headers) == UDP_HEADERS, "RFC 768");

static u8 own_mac[6];
static u32 own_address;

/* What does not change in the frames that are sent, as the words that it is in memory: every header
 * field stored by itself would be as many instructions. */
static struct {
    /* The own MAC address in the upper six bytes, as it lies at the begin of a frame, and as its first
     * two bytes lie in the word where a destination ends. */
    u64 to_own, from_first;
    /* Bytes 8 to 15 of an IPv4 frame: the rest of the own address, the type, the first two bytes of IP. */
    u64 from_rest_to_service;
    /* The sums over the IP header's constant fields (protocol and length left out), and over the own
     * address. */
    u32 ip_sum;
} words;

void net_init(const u8 mac[6], u32 address)
{
    __builtin_memcpy(own_mac, mac, 6);
    own_address = address;
    words.to_own = (u64)load32(mac) << 16 | (u64)load16(mac + 4) << 48;
    words.from_first = (u64)load16(mac) << 48;
    words.from_rest_to_service = load32(mac + 2) | (u64)be16(ETHERTYPE_IPV4) << 32 |
                                 (u64)VERSION_4_HEADER_20 << 48;
    words.ip_sum = VERSION_4_HEADER_20 + be16(DONT_FRAGMENT) + TTL + (address & 0xffff) + (address >> 16);
}

static bool is_to_own_mac(const struct ethernet *ethernet)
{
    return load64(ethernet) << 16 == words.to_own;
}

static void arp_send(const u8 to[6], u16 operation, const u8 target_mac[6], u32 target_address)
{
    u8 *frame = virtio_net_frame();
    struct arp *arp = (struct arp *)frame;
    __builtin_memcpy(arp->ethernet.to, to, 6);
    __builtin_memcpy(arp->ethernet.from, own_mac, 6);
    arp->ethernet.type = be16(ETHERTYPE_ARP);
    arp->hardware = be16(ARP_ETHERNET);
    arp->protocol = be16(ETHERTYPE_IPV4);
    arp->hardware_length = 6;
    arp->protocol_length = 4;
    arp->operation = be16(operation);
    __builtin_memcpy(arp->sender_mac, own_mac, 6);
    arp->sender_address = own_address;
    __builtin_memcpy(arp->target_mac, target_mac, 6);
    arp->target_address = target_address;
    virtio_net_send(frame, sizeof *arp);
}

void net_announce(void)
{
    static const u8 broadcast[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    static const u8 unknown[6];
    /* RFC 5227, 3: an announcement is a request for the own address. */
    arp_send(broadcast, ARP_REQUEST, unknown, own_address);
}

static void arp_receive(const struct arp *arp, u32 length)
{
    if (length < sizeof *arp || arp->hardware != be16(ARP_ETHERNET) ||
        arp->protocol != be16(ETHERTYPE_IPV4) || arp->hardware_length != 6 ||
        arp->protocol_length != 4 || arp->operation != be16(ARP_REQUEST) ||
        arp->target_address != own_address)
        return;
    arp_send(arp->ethernet.from, ARP_REPLY, arp->sender_mac, arp->sender_address);
}

/* Fills in Ethernet's and IP's headers but for the last two bytes of the destination, which it returns: an
 * answer to the sender of `request`. Written word by word, so the fields are where RFC 791 and a
 * little-endian machine put them. */
static inline u32 ip_fill(u8 *frame, const struct ip_headers *request, u32 protocol, u32 payload)
{
    u32 destination = request->ip.source;
    u16 length = be16((u16)(sizeof request->ip + payload));
    u32 sum = words.ip_sum + (protocol << 8) + length + (destination & 0xffff) + (destination >> 16);
    u16 checksum = (u16)~checksum_fold16(sum);
    u64 to = load64(request->ethernet.from) << 16 >> 16;
    store64(frame, to | words.from_first);
    store64(frame + 8, words.from_rest_to_service);
    /* Total length; no identification (RFC 6864: an atomic datagram needs none); flags; TTL, protocol. */
    store64(frame + 16, length | (u64)be16(DONT_FRAGMENT) << 32 | (u64)(TTL | protocol << 8) << 48);
    store64(frame + 24, checksum | (u64)own_address << 16 | (u64)destination << 48);
    return destination >> 16;
}

static void icmp_receive(const struct ip_headers *request, u8 *message, u32 length)
{
    const struct icmp *icmp = (const void *)message;
    store64(message + length, 0);
    if (length < sizeof *icmp || icmp->type != ICMP_ECHO || icmp->code != 0 ||
        checksum_fold(checksum_bytes(0, message, length)) != 0xffff)
        return;
    u8 *frame = virtio_net_frame();
    struct ip_headers *reply = (struct ip_headers *)frame;
    u32 destination_rest = ip_fill(frame, request, PROTOCOL_ICMP, length);
    store64(frame + 32, destination_rest);
    struct icmp *answer = (struct icmp *)(reply + 1);
    copy_words(answer, message, length);
    store64((u8 *)answer + length, 0);
    answer->type = ICMP_ECHO_REPLY;
    answer->checksum = 0;
    answer->checksum = (u16)~checksum_fold(checksum_bytes(0, (const u8 *)answer, length));
    virtio_net_send(frame, sizeof *reply + length);
}

/* The sum over the pseudo header without the own address: that is the request's and the reply's. */
static u64 pseudo_sum(u32 other_address, u16 length)
{
    return (u64)own_address + other_address + be16(PROTOCOL_UDP) + length;
}

void udp_reply_send(const struct datagram *request, u8 *frame, u32 length)
{
    struct udp_headers *reply = (struct udp_headers *)frame;
    u32 udp_length = sizeof reply->udp + length;
    u16 length_field = be16((u16)udp_length);
    u32 destination_rest = ip_fill(frame, request->headers, PROTOCOL_UDP, udp_length);
    /* The request's ports in the other order. */
    u32 ports = load32(request->payload - sizeof reply->udp);
    ports = ports << 16 | ports >> 16;
    store64(frame + 32, destination_rest | (u64)ports << 16 | (u64)length_field << 48);
    u8 *payload = udp_reply_payload(frame);
    store64(payload + length, 0);
    u64 sum = pseudo_sum(request->headers->ip.source, length_field) + ports + length_field;
    u16 checksum = (u16)~checksum_fold(checksum_bytes(sum, payload, length));
    /* A checksum of zero says that there is none; all ones is the same number. */
    reply->udp.checksum = checksum ? checksum : 0xffff;
    virtio_net_send(frame, sizeof *reply + length);
}

static void echo_receive(const struct datagram *request)
{
    u8 *frame = virtio_net_frame();
    copy_words(udp_reply_payload(frame), request->payload, request->length);
    udp_reply_send(request, frame, request->length);
}

/* Port 0 cannot be answered; and two services that answer everything, made to talk to each other by a
 * forged source, would never stop. */
static bool may_ask(u16 port)
{
    return port != 0 && port != be16(PORT_KV) && port != be16(PORT_ECHO) && port != be16(PORT_CONTROL);
}

static void udp_receive(const struct ip_headers *headers, u8 *message, u32 available)
{
    const struct udp *udp = (const void *)message;
    if (available < sizeof *udp)
        return;
    u32 length = be16(udp->length);
    if (length < sizeof *udp || length > available || !may_ask(udp->source))
        return;
    store64(message + length, 0);
    if (likely(udp->checksum)) {
        u64 sum = pseudo_sum(headers->ip.source, udp->length);
        if (checksum_fold(checksum_bytes(sum, message, length)) != 0xffff)
            return;
    }
    struct datagram request = {
        .headers = headers,
        .payload = message + sizeof *udp,
        .length = length - (u32)sizeof *udp,
    };
    if (likely(udp->destination == be16(PORT_KV)))
        kv_receive(&request);
    else if (udp->destination == be16(PORT_ECHO))
        echo_receive(&request);
    else if (udp->destination == be16(PORT_CONTROL))
        control_receive(&request);
}

/* The sum over an IP header of `length` bytes, a multiple of four. */
static u64 ip_header_sum(const u8 *p, u32 length)
{
    u64 sum = checksum_add(load32(p + 16), load64(p));
    sum = checksum_add(sum, load64(p + 8));
    for (u32 at = sizeof(struct ipv4); unlikely(at < length); at += 4)
        sum = checksum_add(sum, load32(p + at));
    return sum;
}

static void ip_receive(u8 *frame, u32 length)
{
    const struct ip_headers *headers = (const void *)frame;
    const struct ipv4 *ip = &headers->ip;
    u32 available = length - (u32)sizeof headers->ethernet;
    u32 header = sizeof *ip;
    u32 total = be16(ip->total_length);
    if (unlikely(ip->version_length != VERSION_4_HEADER_20)) {
        header = (ip->version_length & 15u) * 4;
        if (ip->version_length >> 4 != 4 || header < sizeof *ip)
            return;
    }
    if (total < header || total > available || ip->destination != own_address ||
        ip->fragment & be16(MORE_FRAGMENTS_AND_OFFSET))
        return;
    /* A source that cannot be answered: own, "this network", multicast and above. */
    u8 network = (u8)ip->source;
    if (ip->source == own_address || network == 0 || network >= 224)
        return;
    if (checksum_fold(ip_header_sum((const u8 *)ip, header)) != 0xffff)
        return;
    u8 *payload = frame + sizeof headers->ethernet + header;
    if (likely(ip->protocol == PROTOCOL_UDP))
        udp_receive(headers, payload, total - header);
    else if (ip->protocol == PROTOCOL_ICMP)
        icmp_receive(headers, payload, total - header);
}

void net_receive(u8 *frame, u32 length)
{
    const struct ethernet *ethernet = (const void *)frame;
    /* A group address in the source is a forgery. */
    if (length < sizeof(struct ip_headers) || length > FRAME_MOST || ethernet->from[0] & 1)
        return;
    if (likely(ethernet->type == be16(ETHERTYPE_IPV4))) {
        if (is_to_own_mac(ethernet))
            ip_receive(frame, length);
    } else if (ethernet->type == be16(ETHERTYPE_ARP)) {
        if (is_to_own_mac(ethernet) || ethernet->to[0] & 1)
            arp_receive((const void *)frame, length);
    }
}
