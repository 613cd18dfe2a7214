// Seconds that one message takes over an open TCP connection of ns-3, for each line of the input:
//
//     control bytes bits_per_second one_way_s loss seed
//
// The sender's network card is the bottleneck, with an unlimited queue. Packets are lost only towards the receiver, after the connection is
// open. A hash of n and the seed decides whether the n-th packet sent is lost, so that a model can lose the same packets. As in Linux:
// segments of 1448 bytes, time stamps, SACK, a window of ten segments, an acknowledgement for every second segment or after 40 ms, a
// retransmission timeout of at least the round trip plus 0.2 s.

#include "ns3/core-module.h"
#include "ns3/internet-module.h"
#include "ns3/network-module.h"
#include "ns3/point-to-point-module.h"
#include "ns3/traffic-control-module.h"

#include <iostream>

using namespace ns3;

namespace
{

const double HANDED_S = 2.0; // after the handshake, and before BBR measures its least round trip again (10 s)

struct Losses : public ErrorModel
{
    double share;
    uint64_t seed;
    uint64_t packets = 0;
    bool begun = false;

    Losses(double share_, uint64_t seed_)
        : share(share_),
          seed(seed_)
    {
    }

    bool DoCorrupt(Ptr<Packet>) override
    {
        if (!begun)
        {
            return false;
        }
        uint64_t x = seed * 0x9E3779B97F4A7C15ULL + packets++ * 0xBF58476D1CE4E5B9ULL; // splitmix64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
        x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
        x ^= x >> 31;
        return (x >> 11) * 0x1.0p-53 < share;
    }

    void DoReset() override
    {
    }
};

struct Transfer
{
    uint32_t bytes;
    uint32_t got = 0;
    double arrived_s = -1.0;

    void Read(Ptr<Socket> socket)
    {
        while (Ptr<Packet> packet = socket->Recv())
        {
            got += packet->GetSize();
        }
        if (got >= bytes && arrived_s < 0.0)
        {
            arrived_s = Simulator::Now().GetSeconds();
            Simulator::Stop();
        }
    }

    void Accept(Ptr<Socket> socket, const Address&)
    {
        socket->SetRecvCallback(MakeCallback(&Transfer::Read, this));
    }

    void Begin(Ptr<Socket> socket, Ptr<Losses> losses)
    {
        losses->begun = true;
        socket->Send(Create<Packet>(bytes));
    }
};

double
Seconds_(const std::string& control, uint32_t bytes, double bps, double one_way_s, double loss, uint32_t seed)
{
    RngSeedManager::SetRun(seed);
    Config::SetDefault("ns3::TcpL4Protocol::SocketType", TypeIdValue(TypeId::LookupByName("ns3::" + control)));
    Config::SetDefault("ns3::TcpSocketBase::MinRto", TimeValue(Seconds(2 * one_way_s + 0.2)));
    NodeContainer nodes(2);
    PointToPointHelper line;
    line.SetDeviceAttribute("DataRate", DataRateValue(DataRate(static_cast<uint64_t>(bps))));
    line.SetChannelAttribute("Delay", TimeValue(Seconds(one_way_s)));
    line.SetQueue("ns3::DropTailQueue", "MaxSize", StringValue("1000000p"));
    NetDeviceContainer devices = line.Install(nodes);
    InternetStackHelper().Install(nodes);
    Ipv4AddressHelper addresses("10.0.0.0", "255.255.255.0");
    Ipv4InterfaceContainer interfaces = addresses.Assign(devices);
    TrafficControlHelper().Uninstall(devices); // the default queue discipline manages its queue

    Ptr<Losses> losses = Create<Losses>(loss, seed);
    devices.Get(1)->SetAttribute("ReceiveErrorModel", PointerValue(losses));

    Transfer transfer{bytes};
    Ptr<Socket> sink = Socket::CreateSocket(nodes.Get(1), TcpSocketFactory::GetTypeId());
    sink->Bind(InetSocketAddress(Ipv4Address::GetAny(), 80));
    sink->Listen();
    sink->SetAcceptCallback(MakeNullCallback<bool, Ptr<Socket>, const Address&>(),
                            MakeCallback(&Transfer::Accept, &transfer));
    Ptr<Socket> socket = Socket::CreateSocket(nodes.Get(0), TcpSocketFactory::GetTypeId());
    socket->Connect(InetSocketAddress(interfaces.GetAddress(1), 80));
    Simulator::Schedule(Seconds(HANDED_S), &Transfer::Begin, &transfer, socket, losses);
    Simulator::Stop(Seconds(HANDED_S + 1000));
    Simulator::Run();
    Simulator::Destroy();
    return transfer.arrived_s - HANDED_S;
}

} // namespace

int
main()
{
    Config::SetDefault("ns3::TcpSocket::SegmentSize", UintegerValue(1448));
    Config::SetDefault("ns3::TcpSocket::InitialCwnd", UintegerValue(10));
    Config::SetDefault("ns3::TcpSocket::DelAckCount", UintegerValue(2));
    Config::SetDefault("ns3::TcpSocket::DelAckTimeout", TimeValue(MilliSeconds(40)));
    Config::SetDefault("ns3::TcpSocket::SndBufSize", UintegerValue(1 << 24));
    Config::SetDefault("ns3::TcpSocket::RcvBufSize", UintegerValue(1 << 24));
    std::string control;
    uint32_t bytes;
    uint32_t seed;
    double bps;
    double one_way_s;
    double loss;
    while (std::cin >> control >> bytes >> bps >> one_way_s >> loss >> seed)
    {
        std::cout << Seconds_(control, bytes, bps, one_way_s, loss, seed) << std::endl;
    }
}
