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
_Static_assert(sizeof(struct udp_headers) == 42, "RFC 768");

static u8 own_mac[6];
static u32 own_address;

void net_init(const u8 mac[6], u32 address)
{
    __builtin_memcpy(own_mac, mac, 6);
    own_address = address;
}

static bool mac_equal(const u8 a[6], const u8 b[6])
{
    return load32(a) == load32(b) && load16(a + 4) == load16(b + 4);
}

static void ethernet_fill(struct ethernet *reply, const u8 to[6], u16 type)
{
    __builtin_memcpy(reply->to, to, 6);
    __builtin_memcpy(reply->from, own_mac, 6);
    reply->type = be16(type);
}

static void arp_send(const u8 to[6], u16 operation, const u8 target_mac[6], u32 target_address)
{
    u8 *frame = virtio_net_frame();
    struct arp *arp = (struct arp *)frame;
    ethernet_fill(&arp->ethernet, to, ETHERTYPE_ARP);
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

/* The sum over the fields of an IPv4 header without its checksum. */
static u16 ip_checksum(const struct ipv4 *ip)
{
    u64 sum = checksum_word(load64(ip), load64((const u8 *)ip + 12));
    return (u16)~checksum_fold(checksum_word(sum, load16(&ip->ttl)));
}

/* Answers to the sender of `request`. */
static void ip_fill(struct ip_headers *reply, const struct ip_headers *request, u8 protocol,
                    u32 payload)
{
    ethernet_fill(&reply->ethernet, request->ethernet.from, ETHERTYPE_IPV4);
    reply->ip.version_length = VERSION_4_HEADER_20;
    reply->ip.service = 0;
    reply->ip.total_length = be16((u16)(sizeof reply->ip + payload));
    /* RFC 6864: a datagram that is never fragmented needs no identification. */
    reply->ip.identification = 0;
    reply->ip.fragment = be16(DONT_FRAGMENT);
    reply->ip.ttl = TTL;
    reply->ip.protocol = protocol;
    reply->ip.source = own_address;
    reply->ip.destination = request->ip.source;
    reply->ip.checksum = ip_checksum(&reply->ip);
}

static void icmp_receive(const struct ip_headers *request, const u8 *message, u32 length)
{
    const struct icmp *icmp = (const void *)message;
    if (length < sizeof *icmp || icmp->type != ICMP_ECHO || icmp->code != 0 ||
        checksum_fold(checksum_bytes(0, message, length)) != 0xffff)
        return;
    u8 *frame = virtio_net_frame();
    struct ip_headers *reply = (struct ip_headers *)frame;
    ip_fill(reply, request, PROTOCOL_ICMP, length);
    struct icmp *answer = (struct icmp *)(reply + 1);
    copy_words(answer, message, length);
    answer->type = ICMP_ECHO_REPLY;
    answer->checksum = 0;
    answer->checksum = (u16)~checksum_fold(checksum_bytes(0, (const u8 *)answer, length));
    virtio_net_send(frame, sizeof *reply + length);
}

/* The sum over the pseudo header, the UDP header and the payload, behind one another in memory. */
static u64 udp_sum(const struct ipv4 *ip, const struct udp *udp, u32 length)
{
    u64 sum = (u64)ip->source + ip->destination + be16(PROTOCOL_UDP) + be16((u16)length);
    return checksum_bytes(sum, (const u8 *)udp, length);
}

u8 *udp_reply_payload(u8 *frame)
{
    return frame + sizeof(struct udp_headers);
}

void udp_reply_send(const struct datagram *request, u8 *frame, u32 length)
{
    struct udp_headers *reply = (struct udp_headers *)frame;
    u32 udp_length = sizeof reply->udp + length;
    ip_fill((struct ip_headers *)reply, request->headers, PROTOCOL_UDP,
            udp_length);
    const struct udp *asked = (const struct udp *)(request->payload - sizeof *asked);
    reply->udp.source = asked->destination;
    reply->udp.destination = asked->source;
    reply->udp.length = be16((u16)udp_length);
    reply->udp.checksum = 0;
    u16 checksum = (u16)~checksum_fold(udp_sum(&reply->ip, &reply->udp, udp_length));
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

static void udp_receive(const struct ip_headers *headers, u8 *message, u32 available)
{
    const struct udp *udp = (const void *)message;
    if (available < sizeof *udp)
        return;
    u32 length = be16(udp->length);
    if (length < sizeof *udp || length > available)
        return;
    if (udp->checksum && checksum_fold(udp_sum(&headers->ip, udp, length)) != 0xffff)
        return;
    struct datagram request = {
        .headers = headers,
        .payload = message + sizeof *udp,
        .length = length - (u32)sizeof *udp,
    };
    /* Port 0 cannot be answered; and two services that answer everything, made to talk to each other
     * by a forged source, would never stop. */
    if (udp->source == 0 || udp->source == be16(PORT_ECHO) ||
        udp->source == be16(PORT_CONTROL) || udp->source == be16(PORT_KV))
        return;
    if (likely(udp->destination == be16(PORT_KV)))
        kv_receive(&request);
    else if (udp->destination == be16(PORT_ECHO))
        echo_receive(&request);
    else if (udp->destination == be16(PORT_CONTROL))
        control_receive(&request);
}

static void ip_receive(u8 *frame, u32 length)
{
    const struct ip_headers *headers = (const void *)frame;
    const struct ipv4 *ip = &headers->ip;
    u32 available = length - (u32)sizeof headers->ethernet;
    u32 header = (ip->version_length & 15u) * 4;
    u32 total = be16(ip->total_length);
    if (ip->version_length >> 4 != 4 || header < sizeof *ip || total < header ||
        total > available)
        return;
    if (ip->destination != own_address || ip->fragment & be16(MORE_FRAGMENTS_AND_OFFSET))
        return;
    /* A source that cannot be answered: own, "this network", multicast and above. */
    u8 network = (u8)ip->source;
    if (ip->source == own_address || network == 0 || network >= 224)
        return;
    if (checksum_fold(checksum_bytes(0, (const u8 *)ip, header)) != 0xffff)
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
    if (ethernet->type == be16(ETHERTYPE_IPV4)) {
        if (mac_equal(ethernet->to, own_mac))
            ip_receive(frame, length);
    } else if (ethernet->type == be16(ETHERTYPE_ARP)) {
        if (mac_equal(ethernet->to, own_mac) || ethernet->to[0] & 1)
            arp_receive((const void *)frame, length);
    }
}
